"""Printed numbers in many fonts on crops of photographs: a data set on disk and the scores of a model on it."""
