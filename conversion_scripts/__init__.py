"""Composing, converting, exporting and comparing checkpoints: functions, and programs of the same names."""
