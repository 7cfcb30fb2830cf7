"""A run that begins with weights from elsewhere: they are in every encoder, and stay in its memory."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from hjepa_shards.errors import InputError, ResumeMismatch
from hjepa_train import dry_run, export, load_run_config, train, write_report
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.checkpoints.checkpoint_files import latest, load, read_state
from hjepa_train.cli import main
from hjepa_train.jobs.dry_run import as_tables
from hjepa_train.jobs.export import Form
from hjepa_train.jobs.initial_weights import begin_with
from hjepa_train.modules.layers import sincos_positions
from hjepa_train.training.config import build_parts
from hjepa_train.weights.fitting import digest_of
from hjepa_train.weights.init_config import InitConfig, weights_named
from tests.conftest import in_this_process
from tests.hjepa_train.jobs.test_weight_sources import tiny_dino
from tests.hjepa_train.tiny import tiny_run


@pytest.fixture(scope="module")
def first(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps."""
    return train(load_run_config(tiny_run(shards, tmp_path_factory.mktemp("first"))), stop_after=5)


def second(shards: Path, folder: Path, init: dict[str, Any] | None, **changes: Any) -> Path:
    """Its configuration: another seed, so that all that is drawn is drawn otherwise."""
    path = tiny_run(shards, folder, run__seed=8, **changes)
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, **({"init": init} if init else {})}))
    return path


def memory(run: Path) -> dict[str, Tensor]:
    path = latest(run / "checkpoints")
    assert path is not None
    return load(path).model


def of(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def begun(config: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An objective's memory before its first step, and what it says it began with."""
    loaded = load_run_config(config)
    _, objective = build_parts(loaded, 36, "here")
    assert loaded.init is not None
    (name,) = loaded.objective
    return dict(objective.state_dict()), begin_with(loaded.init, objective, name, "here").facts


def test_both_encoders_begin_with_the_target_of_a_run_or_the_encoder_that_is_named(
    first: Path, shards: Path, tmp_path: Path
) -> None:
    saved = memory(first)
    drawn = dict(build_parts(load_run_config(second(shards, tmp_path, None)), 36, "here")[1].state_dict())
    for init, source in (({}, "target."), ({"encoder": "online"}, "backbone.")):
        found, facts = begun(second(shards, tmp_path, {"weights": str(first), **init}))
        for network in ("backbone.", "target."):
            torch.testing.assert_close(of(network, found), of(source, saved), rtol=0, atol=0)
        torch.testing.assert_close(of("predictor.", found), of("predictor.", drawn), rtol=0, atol=0)
        assert facts["digest"] == digest_of(of(source, saved))
        assert facts["source"].endswith(f"step-00000005, {init.get('encoder', 'target')}")
    assert not torch.equal(saved["target.norm.weight"], saved["backbone.norm.weight"])


def test_a_checkpoint_is_named_by_its_folder_or_its_name(first: Path, shards: Path, tmp_path: Path) -> None:
    step = latest(first / "checkpoints")
    assert step is not None
    by_folder = begun(second(shards, tmp_path, {"weights": str(step)}))
    by_name = begun(second(shards, tmp_path, {"weights": str(first), "checkpoint": step.name}))
    assert by_folder[1] == by_name[1]
    with pytest.raises(InputError, match=r"one of online, target expected"):
        begun(second(shards, tmp_path, {"weights": str(first), "encoder": "onlin"}))
    with pytest.raises(InputError, match=r"init.key and init.layout are of files"):
        begun(second(shards, tmp_path, {"weights": str(first), "key": "teacher"}))
    with pytest.raises(InputError, match=r"step-7: `latest`, `best` or the folder"):
        begun(second(shards, tmp_path, {"weights": str(first), "checkpoint": "step-7"}))


@pytest.mark.parametrize("form", ["safetensors", "torch", "timm"])
def test_what_is_exported_comes_back(first: Path, shards: Path, tmp_path: Path, form: Form) -> None:
    out = export(first, form, tmp_path / form, encoder="online")
    [file] = [path for path in out.iterdir() if path.name.startswith("model.")]
    ways = [str(out), str(file), *([f"local-dir:{out}"] if form == "timm" else [])]
    for way in ways:
        found, facts = begun(second(shards, tmp_path, {"weights": way}))
        torch.testing.assert_close(of("backbone.", found), of("backbone.", memory(first)), rtol=0, atol=0)
        assert facts["digest"] == digest_of(of("backbone.", memory(first)))


def test_a_run_trains_from_there_says_so_and_continues_without_reading_again(
    first: Path, shards: Path, tmp_path: Path
) -> None:
    out = export(first, "torch", tmp_path / "out")
    config = second(shards, tmp_path, {"weights": str(out / "model.pt")})
    told = [row for table in as_tables(dry_run(load_run_config(config))) for row in table.rows]
    whole = train(load_run_config(config, [f"run.folder={tmp_path / 'whole'}"]), stop_after=9)
    loaded = load_run_config(config)
    run = train(loaded, stop_after=4)
    (out / "model.pt").unlink()
    assert train(loaded, resume="auto", stop_after=9) == run
    assert [row["loss"] for row in read_metrics(run / "metrics.jsonl")] == [
        row["loss"] for row in read_metrics(whole / "metrics.jsonl")
    ]
    newest = latest(run / "checkpoints")
    assert newest is not None
    facts = read_state(newest)["init"]
    assert facts == {
        "source": f"{out / 'model.pt'}, weights",
        "digest": digest_of(of("target.", memory(first))),
        "layout": "timm",
        "tensors": len(of("target.", memory(first))) - 1,  # fixed positions are there already
    }
    assert ("begins with", f"{facts['source']} ({facts['digest']})") in told
    assert facts["digest"] in write_report(run).read_text()
    with pytest.raises(InputError, match=r"model\.pt"):
        train(load_run_config(config, ["run.name=other"]))
    assert not (tmp_path / "other").exists()
    with pytest.raises(ResumeMismatch, match=r"init\.weights: .*model\.pt saved, None here"):
        train(load_run_config(second(shards, tmp_path, None)), resume="auto")


def test_all_of_a_run_with_the_same_objective_begins_a_second_phase(first: Path, shards: Path, tmp_path: Path) -> None:
    saved = memory(first)
    found, facts = begun(second(shards, tmp_path, {"weights": str(first), "parts": "all"}))
    counted = {"num_updates"}
    assert {name for name in found if not torch.equal(found[name], saved[name])} == counted
    assert found["num_updates"].item() == 0, "schedules begin at 0"
    assert facts["tensors"] == len(saved) - len(counted) - 2, "fixed positions are there already"
    mae = second(shards, tmp_path, {"weights": str(first), "parts": "all"})
    content = yaml.safe_load(mae.read_text())
    mae.write_text(
        yaml.safe_dump({**content, "objective": {"mae": {"decoder": {"width": 16, "depth": 1, "heads": 2}}}})
    )
    with pytest.raises(InputError, match=r"a run with the objective mae expected, hjepa found"):
        begun(mae)
    wider = {"hjepa": {"levels": 2, "momentum": 0.8, "predictor": {"width": 32, "depth": 1, "heads": 2}}}
    content["objective"] = wider
    mae.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"of another shape: predictor\.mask_token \(\[16\] found, \[32\] here\)"):
        begun(mae)


def test_what_does_not_fit_is_named_the_first_five(first: Path, shards: Path, tmp_path: Path) -> None:
    out = export(first, "safetensors", tmp_path / "out") / "model.safetensors"
    tensors = load_file(out)

    def said(change: dict[str, Tensor | None], **init: Any) -> str:
        kept = {name: value for name, value in {**tensors, **change}.items() if value is not None}
        save_file(kept, tmp_path / "w.safetensors")
        with pytest.raises(InputError) as refused:
            begun(second(shards, tmp_path, {"weights": str(tmp_path / "w.safetensors"), **init}))
        assert str(refused.value).startswith(f"here: init: {tmp_path}/w.safetensors: ")
        return str(refused.value).partition("w.safetensors: ")[2]

    assert said(dict.fromkeys(tensors)).startswith("tensors by name expected")
    missing = said({name: None for name in tensors if name.startswith("blocks.0.")})
    assert missing.startswith(
        "weights of this backbone expected (layout timm), found 12 missing: blocks.0.norm1.weight, "
        "blocks.0.norm1.bias, blocks.0.attn.qkv.weight, blocks.0.attn.qkv.bias, blocks.0.attn.proj.weight and 7 more; "
    )
    assert "1 left over: neck.weight; " in said({"neck.weight": torch.ones(3)})
    wide = said({"norm.weight": torch.ones(48)})
    assert "1 of another shape: norm.weight ([48] found, [24] here)" in wide
    assert said({"patch_embed.proj.weight": torch.ones(24, 1, 2, 2)}).startswith(
        "patch_embed.proj.weight: weights for images of 3 channels expected, for 1 found"
    )
    assert "set the backbone's patch to 4" in said({"patch_embed.proj.weight": torch.ones(24, 3, 4, 4)})
    assert "finite numbers expected, others found in norm.bias" in said({"norm.bias": torch.full((24,), torch.nan)})
    assert "positions: learnt" in said({"pos_embed": torch.randn(1, 64, 24)})
    assert "init.leave: nothing.*: a name on one of both sides expected" in said({}, leave=["nothing.*"])


def test_what_may_differ_is_left_as_it_is(first: Path, shards: Path, tmp_path: Path) -> None:
    out = export(first, "safetensors", tmp_path / "out") / "model.safetensors"
    tensors = load_file(out)
    del tensors["norm.weight"]
    save_file({**tensors, "neck.weight": torch.ones(3), "head.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    init = {"weights": str(tmp_path / "w.safetensors"), "leave": ["neck.*", "norm.weight", "blocks.1.*"]}
    config = load_run_config(second(shards, tmp_path, init))
    _, objective = build_parts(config, 36, "here")
    drawn = {name: value.clone() for name, value in objective.state_dict().items()}
    assert config.init is not None
    notes = begin_with(config.init, objective, "hjepa", "here").notes
    assert notes[0] == "no part of the backbone, left out: head.weight"
    assert notes[1].startswith("left as they are, by init.leave: blocks.1.norm1.weight")
    assert "and 9 more" in notes[1]
    changed = {name for name, value in objective.state_dict().items() if not torch.equal(value, drawn[name])}
    assert not any(name.partition(".")[2].startswith(("norm.weight", "blocks.1.")) for name in changed)
    assert "backbone.blocks.0.attn.qkv.weight" in changed


def test_weights_on_a_command_line_are_a_name_or_all_of_init() -> None:
    assert weights_named("runs/x", "--beside") == InitConfig(weights="runs/x")
    assert weights_named("timm:vit_tiny", "--beside").weights == "timm:vit_tiny"
    one = weights_named("{weights: a.pth, key: teacher}", "--beside")
    assert one == InitConfig(weights="a.pth", key="teacher")
    assert (one.called, InitConfig(weights="a.pth").called) == ("a.pth, teacher", "a.pth")
    with pytest.raises(InputError, match="--beside: unknown key `keys`; did you mean `key`"):
        weights_named("{weights: a.pth, keys: teacher}", "--beside")
    assert json.loads(InitConfig(weights="a").model_dump_json())["leave"] == []


@pytest.mark.parametrize("positions", ["sincos", "learnt"])
def test_a_second_phase_at_twice_the_resolution(shards: Path, tmp_path: Path, positions: str) -> None:
    """16 px first, then 32 px, the whole objective; positions are between those that the first phase knew."""
    vit = {"width": 24, "depth": 2, "heads": 2, "patch": 2, "positions": positions}
    levels = {"levels": 2, "strides": [1, 2], "momentum": 0.8, "predictor": {"width": 16, "depth": 1, "heads": 2}}
    parts = {"objective__hjepa": levels, "backbone__vit": vit}
    low = train(load_run_config(tiny_run(shards, tmp_path / "low", **parts)), stop_after=3)
    high = second(shards, tmp_path / "high", {"weights": str(low), "parts": "all"}, data__image_size=32, **parts)
    if positions == "sincos":
        with pytest.raises(
            InputError, match=r"of 16 x 16 cells expected, of 8 x 8 found; set backbone\.vit\.position_grid: 8"
        ):
            begun(high)
        high = second(
            shards,
            tmp_path / "high",
            {"weights": str(low), "parts": "all"},
            data__image_size=32,
            **{**parts, "backbone__vit": {**vit, "position_grid": 8}},
        )
    found, facts = begun(high)
    before = memory(low)
    table = found["target.pos_embed"][0]
    coarse = before["target.pos_embed"][0].view(8, 8, 24)
    if positions == "sincos":
        torch.testing.assert_close(table, sincos_positions(16, 24, extent=8))
    else:
        pooled = table.view(8, 2, 8, 2, 24).mean((1, 3))
        assert (pooled - coarse)[1:-1, 1:-1].abs().max() < 0.25 * coarse.std(), (
            "four small cells are about their large one"
        )
    torch.testing.assert_close(found["predictor.heads.0.weight"], before["predictor.heads.0.weight"], rtol=0, atol=0)
    assert len(facts["digest"]) == 32
    run = train(load_run_config(high), stop_after=2)
    assert (run / "report.md").exists()
    assert all(row["loss"] < 10 for row in read_metrics(run / "metrics.jsonl"))


def test_foreign_encoders_are_rows_beside_ours(
    first: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An export of the run's own target, with its own pixels, has the target's numbers in each column."""
    run = shutil.copytree(first, tmp_path / "run")
    out = export(first, "safetensors", tmp_path / "ours")
    command = in_this_process("hjepa-train", main, monkeypatch, capfd)
    spec = f"{{weights: {out}, leave: [norm.bias]}}"
    code, said, _ = command("eval", run, "--probe", "knn,ridge", "--beside", out, "--beside", tiny_foreign(tmp_path))
    assert code == 0
    [evaluation] = json.loads((run / "evaluation.json").read_text())
    rows = {row.pop("features"): row for row in evaluation["rows"]}
    assert list(rows)[-2:] == [str(out), str(tmp_path / "dino.pth")]
    assert len(rows) == len(evaluation["rows"]), "each of them once"
    assert rows[str(out)] == rows["target"]
    assert rows[str(tmp_path / "dino.pth")] != rows["target"]
    assert rows[str(tmp_path / "dino.pth")]["dims"] == 64
    code, said, _ = command("eval", run, "--probe", "knn,ridge", "--beside", out)
    assert "known already: target (knn, ridge)" in said
    assert f"known already: {out}" in "".join(said.split("\n"))
    code, _, err = command("eval", run, "--beside", spec.replace("leave", "leaves"))
    assert (code, "did you mean `leave`" in " ".join(err.split())) == (2, True)


def test_the_program_exports_weights_without_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = in_this_process("hjepa-train", main, monkeypatch, capfd)
    weights, out = tiny_foreign(tmp_path), tmp_path / "out"
    asked = command("export", "--weights", weights, "--to", "safetensors", "--out", out, "--image-size", 16)
    assert (asked[0], (out / "model.safetensors").is_file()) == (0, True)
    assert load_file(out / "model.safetensors")["pos_embed"].shape == (1, 1 + 4, 64)
    assert command("export", "--to", "torch")[0] == 2
    assert command("export", "--weights", weights, "--to", "torch")[0] == 2


def tiny_foreign(folder: Path) -> Path:
    path = folder / "dino.pth"
    torch.save(tiny_dino(torch.Generator().manual_seed(5)), path)
    return path
