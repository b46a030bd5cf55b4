# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Kept vision features: training with them equals training without, and no others are ever used."""

import pickle

import PIL.Image
import pytest
import torch
from helpers import LAYOUTS, losses
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader

from jvlm.training import DataCollatorForJinaVLM, JinaVLMTrainer, vision_features
from jvlm.training.mixtures import Mixture, MixtureConfig, MixtureSource


@pytest.fixture
def rows(build_row):
    """Rows with none, one or two images; one image is black and fits one tile, a copy of its thumbnail."""
    rows = [build_row(number, num_images=number % 3, num_turns=2) for number in range(7)]
    return [*rows, {**build_row(7), "images": [PIL.Image.new("RGB", (56, 56))]}]


@pytest.fixture
def build_trainer(build_model, build_processor, rows, training_arguments):
    """A function (folder, train_dataset, model, collator arguments, **arguments) that builds a trainer."""

    def build(folder=None, train_dataset=None, model=None, collator=None, **arguments) -> JinaVLMTrainer:
        processor = build_processor()
        settings = {"freeze": ["vision_tower"], "max_steps": -1, "num_train_epochs": 2, **arguments}
        return JinaVLMTrainer(
            model=model or build_model(),
            args=training_arguments(keep_vision_features=folder and str(folder), **settings),
            train_dataset=train_dataset or rows,
            data_collator=DataCollatorForJinaVLM(processor, **(collator or {})),
            processing_class=processor,
        )

    return build


@pytest.fixture
def count_tiles(monkeypatch):
    """A function (model) that returns a list, to which the number of tiles of every call of the tower is added."""

    def count(model) -> list[int]:
        tower, calls = getattr(model, "model", model).vision_tower, []
        tower.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
        return calls

    return count


# The model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_in_place_of_pixels_give_the_same_outputs(build_model, build_processor, rows, layout):
    model = build_model(layout).requires_grad_(False)
    batch = DataCollatorForJinaVLM(build_processor(layout))(rows)
    expected = model(**batch)
    batch["vision_features"] = model.model.get_vision_features(batch.pop("pixel_values")).last_hidden_state
    assert not batch["vision_features"][-1].any()  # of the black image
    model.model.vision_tower = torch.nn.Module()  # fails if it is run
    outputs = model(**batch)
    assert torch.equal(outputs.logits, expected.logits)
    assert torch.equal(outputs.loss, expected.loss)


def test_features_are_checked(build_model, collate, build_row):
    model, batch = build_model(), collate([build_row()])
    pixel_values = batch.pop("pixel_values")
    features = model.model.get_vision_features(pixel_values).last_hidden_state.detach()
    with pytest.raises(ValueError, match="at most one of pixel_values, vision_features and mm_encoder_outputs"):
        model(**batch, pixel_values=pixel_values, vision_features=features)
    with pytest.raises(ValueError, match=r"shape \(\d+, 48, 32\), but must have .* \(tiles, 49, 32\)"):
        model(**batch, vision_features=features[:, 1:])
    with pytest.raises(ValueError, match=r"trainable parameters\. Freeze it, adapters included"):
        model(**batch, vision_features=features)
    model.model.vision_tower.requires_grad_(False)
    with pytest.raises(ValueError, match=r"3 × 4 = 12 pooled cells"):
        model(**batch, vision_features=features[1:])


# Training


@pytest.mark.parametrize(("packing", "num_workers"), [(False, 2), (True, 0)])
def test_training_equals_that_without(build_trainer, count_tiles, tmp_path, packing, num_workers):
    settings = {"collator": {"packing": packing}, "dataloader_num_workers": num_workers}
    plain, kept = build_trainer(**settings), build_trainer(tmp_path / "kept", **settings)
    plain.train()
    calls = count_tiles(kept.model)
    kept.train()
    kept_tiles = kept.data_collator.vision_features
    assert sum(calls) == len(kept_tiles)  # each of them once
    torch.testing.assert_close(losses(kept), losses(plain), rtol=1e-6, atol=0)
    expected = plain.model.state_dict()
    for name, tensor in kept.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    # Evaluation runs the tower: its rows have no kept features.
    evaluated = [trainer.evaluate(trainer.train_dataset[:3])["eval_loss"] for trainer in (kept, plain)]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-6)
    assert sum(calls) > len(kept_tiles)


def test_features_are_computed_once(build_trainer, build_row, count_tiles, rows, tmp_path):
    first = build_trainer(tmp_path / "kept", max_steps=1)
    first.train()
    files = set((tmp_path / "kept").iterdir())
    second = build_trainer(tmp_path / "kept", max_steps=1)
    calls = count_tiles(second.model)
    second.train()
    assert not calls
    assert losses(second) == losses(first)
    assert set((tmp_path / "kept").iterdir()) == files
    third = build_trainer(tmp_path / "kept", [*rows, build_row(11)], max_steps=1)
    calls = count_tiles(third.model)
    third.train()
    assert len(calls) == 1
    assert files < set((tmp_path / "kept").iterdir())


def test_rows_of_a_mixture_are_read_once(keep, rows, tmp_path, monkeypatch):
    mixture = Mixture(MixtureConfig([MixtureSource("a")]), num_steps=9, rows_per_step=4, data_sets=[rows])
    read = []
    monkeypatch.setattr(mixture, "locate", lambda index: read.append(Mixture.locate(mixture, index)) or read[-1])
    kept = keep(tmp_path / "mixture", train_dataset=mixture)
    assert sorted(read) == [(0, number) for number in range(len(rows))]
    assert len(kept) == len(keep(tmp_path / "rows"))


def test_text_only_rows(build_trainer, build_row, tmp_path):
    trainer = build_trainer(tmp_path, [build_row(number, num_images=0) for number in range(4)])
    trainer.train()
    assert len(trainer.data_collator.vision_features) == 1  # the blank tile
    assert all(loss > 0 for loss in losses(trainer))


def test_bad_rows_are_counted_once(build_trainer, rows, tmp_path):
    rows[1]["images"] = [b"no image"]
    trainer = build_trainer(tmp_path, collator={"skip_bad_rows": True}, num_train_epochs=1)
    trainer.train()
    assert trainer.data_collator.num_skipped_rows == 1


def test_adapters_of_the_language_model(build_model, build_trainer, tmp_path):
    targets = r".*language_model.*(q|v)_proj"

    def adapted(targets):
        config = LoraConfig(r=4, target_modules=targets, modules_to_save=["connector"], task_type="CAUSAL_LM")
        return get_peft_model(build_model(), config)

    kept = build_trainer(tmp_path, model=adapted(targets), freeze=None)
    kept.train()
    plain = build_trainer(model=adapted(targets), freeze=None)
    plain.train()
    assert losses(kept)[-1] < losses(kept)[0]
    torch.testing.assert_close(losses(kept), losses(plain), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match=r"the vision tower is trained, adapters included"):
        build_trainer(tmp_path, model=adapted("all-linear"), freeze=None).train()


# The folder


@pytest.fixture
def keep(build_model, build_trainer):
    """A function (folder, model, train_dataset, **trainer arguments) that keeps features and returns them."""

    def run(folder, model=None, train_dataset=None, **settings):
        trainer = build_trainer(folder, train_dataset, model, **settings)
        trainer._keep_vision_features(str(folder))
        return trainer.data_collator.vision_features

    return run


def test_features_of_another_tower_are_refused(keep, build_model, tmp_path):
    keep(tmp_path)
    other = build_model()
    other.model.vision_tower.encoder.layers[0].mlp.fc1.bias.data[0] += 1e-3
    for model, problem in (
        (other, "its `weights` is '[0-9a-f]{32}', here it is '[0-9a-f]{32}'"),
        (build_model().bfloat16(), "its `dtype` is 'float32', here it is 'bfloat16'"),
        (build_model(vision_feature_layer=[0, 1]), r"its `vision_feature_layer` is \[\d, \d\], here it is \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=f"holds the features of another vision tower: {problem}"):
            keep(tmp_path, model)
    with pytest.raises(ValueError, match="its `mixed_precision` is 'no', here it is 'bf16'"):
        keep(tmp_path, bf16=True)
    other = build_model()
    other.model.language_model.embed_tokens.weight.data += 1  # no part of the tower
    keep(tmp_path, other)


def test_what_cannot_be_kept_is_refused(keep, build_model, build_trainer, rows, tmp_path):
    with pytest.raises(ValueError, match="the vision tower is trained"):
        keep(tmp_path, freeze=None)
    model = build_model()
    model.config.vision_config.attention_dropout = 0.1
    with pytest.raises(ValueError, match=r"`vision_config.attention_dropout` is 0.1"):
        keep(tmp_path, model)
    from datasets import IterableDataset

    with pytest.raises(ValueError, match="cannot be kept of a stream"):
        keep(tmp_path, train_dataset=IterableDataset.from_generator(lambda: rows), max_steps=1)
    trainer = build_trainer(tmp_path)
    trainer.data_collator = list
    with pytest.raises(ValueError, match="`keep_vision_features` needs a `DataCollatorForJinaVLM`, not type"):
        trainer.train()


def test_other_pixels_are_an_error(keep, build_processor, rows, tmp_path):
    """The settings of the image processor have changed, or the images."""
    kept = keep(tmp_path)
    flipped = [{**row, "images": [image.rotate(180) for image in row["images"]]} for row in rows]
    for processor, changed in ((build_processor(max_crops=2), rows), (build_processor(), flipped)):
        collator = DataCollatorForJinaVLM(processor, skip_bad_rows=True)
        collator.vision_features = kept
        with pytest.raises(ValueError, match=r"has no features of \d+ of \d+ tiles .*image processor must stay"):
            collator(changed)


def test_an_interrupted_run_leaves_no_part_of_a_shard(keep, rows, tmp_path, monkeypatch):
    write = vision_features.save_file
    paths = []

    def interrupted(tensors, path):
        paths.append(path)
        write(tensors, path)
        if len(paths) == 4:
            path.write_bytes(path.read_bytes()[:-8])
            raise KeyboardInterrupt

    monkeypatch.setattr(vision_features, "SHARD_BYTES", 1)  # a shard has one tile
    monkeypatch.setattr(vision_features, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert len(list(tmp_path.glob("*.part"))) == 1
    kept = keep(tmp_path)
    assert len(kept) > 4
    shard = next(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(ValueError, match=rf"{shard.name} is damaged .* Delete it"):
        keep(tmp_path)
    shard.unlink()
    assert len(keep(tmp_path)) == len(kept)


def test_readers_in_several_workers(keep, build_processor, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(vision_features, "SHARD_BYTES", 20_000)  # several shards
    collator = DataCollatorForJinaVLM(build_processor())
    collator.vision_features = keep(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    expected = [collator(rows[start : start + 4]) for start in (0, 4)]
    # Workers that are started anew get the features by pickle.
    collator.vision_features = pickle.loads(pickle.dumps(collator.vision_features))
    for batch, one in zip(DataLoader(rows, 4, num_workers=2, collate_fn=collator), expected, strict=True):
        assert batch.keys() == one.keys()
        assert all(torch.equal(batch[name], one[name]) for name in one)
