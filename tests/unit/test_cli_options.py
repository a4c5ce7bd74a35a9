"""The command line's surface: options are pinned, help is fast and needs no torch, mistakes get one clear line."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from osmose.cli import VERBS, main
from osmose.cli.train import default_folder

COMMON = {"--help", "--json"}
DATA = {
    "--data",
    "--env",
    "--protocol",
    "--label",
    "--edges",
    "--labels-per-class",
    "--knn",
    "--id",
    "--ignore",
    "--directed",
    "--no-directed",
    "--split-seed",
    "--size",
    "--length",
}
MODEL = {
    "--model",
    "--hidden",
    "--layers",
    "--heads",
    "--dropout",
    "--alpha",
    "--residual",
    "--no-residual",
    "--layer-norm",
    "--no-layer-norm",
    "--use-graph",
    "--no-use-graph",
    "--graph-weight",
    "--use-weight",
    "--no-use-weight",
    "--use-source",
    "--no-use-source",
    "--normalization",
    "--preset",
    "--position",
    "--patch",
    "--stages",
    "--context",
}
TRAIN = {
    "--lr",
    "--weight-decay",
    "--optimizer",
    "--clip",
    "--schedule",
    "--warmup",
    "--epochs",
    "--patience",
    "--eval-every",
    "--batch-size",
    "--splits",
    "--seed",
    "--precision",
    "--device",
    "--threads",
    "--checkpoint-seconds",
    "--trackers",
}
OPTIONS = {
    "list": COMMON,
    "train": COMMON | DATA | MODEL | TRAIN | {"--out", "--resume", "--overwrite"},
    "eval": COMMON,
    "predict": COMMON | {"--edges", "--out"},
    "compare": COMMON
    | DATA
    | {
        "--models",
        "--splits",
        "--trials",
        "--search-splits",
        "--seed",
        "--epochs",
        "--patience",
        "--normalization",
    }
    | {"--batch-size", "--device", "--threads", "--out", "--overwrite"},
    "generate": COMMON | {"--prompt", "--length", "--temperature", "--top-k", "--top-p", "--seed"},
    "identify": COMMON | {"--module", "--length", "--channels", "--layout", "--tolerance", "--seed", "--out"},
    "rank": COMMON | {"--module", "--tolerance", "--seed", "--out"},
    "verify": COMMON | {"--against", "--out"},
    "heads": COMMON | {"--sequences", "--length", "--null", "--replace", "--scored", "--seed", "--out"},
    "adaptivity": COMMON
    | {"--sequences", "--length", "--samples", "--probes", "--scored", "--seed", "--out"},
    "particles": COMMON
    | {"--text", "--sequences", "--length", "--beta", "--scale", "--centre", "--seed", "--out"},
    "positions": COMMON
    | {"--tasks", "--options", "--mixers", "--seeds", "--steps", "--jobs", "--out", "--overwrite"},
    "simulate": COMMON | {"--list", "--set", "--movie", "--payload", "--out"},
    "reproduce": COMMON | {"--all", "--quick", "--out"},
    "doctor": COMMON,
}


def help_of(*words: str) -> tuple[str, float]:
    """Help text and the CPU seconds it took, in a process of its own that must not import torch."""
    code = (
        "import sys\nfrom osmose.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as stop:\n    code = stop.code\n"
        "print('TORCH' if 'torch' in sys.modules else 'LIGHT', code)\n"
    )
    started = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime
    assert done.stdout.rstrip().endswith("LIGHT 0"), done.stdout[-300:] + done.stderr
    return done.stdout, seconds


@pytest.mark.parametrize("verb", VERBS)
def test_options_are_frozen(verb: str) -> None:
    text, _ = help_of(verb, "--help")
    found = set(re.findall(r"(?<![\w`-])--[a-z][a-z-]*(?![\w`-])", text.split("options", 1)[1]))
    defined = {line for line in found if re.search(rf"│ (-h, )?([^│]*, )?{line}\b", text)}
    assert defined == OPTIONS[verb]


@pytest.mark.parametrize(
    "words", [("--help",), *[(verb, "--help") for verb in VERBS], ("train", "cora", "--help")]
)
def test_help_answers_within_a_second(words: tuple[str, ...]) -> None:
    best = min(help_of(*words)[1] for _ in range(2))
    assert best < 1.0


def test_help_of_a_task_shows_its_recipe() -> None:
    assert re.search(r"--layers INT.*?\(default: 8\)", help_of("train", "cora", "--help")[0], re.DOTALL)
    assert re.search(r"--layers INT.*?\(default: 2\)", help_of("train", "--help")[0], re.DOTALL)


def test_help_lists_every_verb() -> None:
    text, _ = help_of("--help")
    for verb, line in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(line)}$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "digits"], "unknown verb 'trian'; did you mean 'train'?"),
        (["train", "digitz"], "did you mean 'digits'"),
        (
            ["train", "digits", "--model", "diformer-s"],
            "unknown model 'diformer-s'; did you mean 'difformer-s'?",
        ),
        (["train", "digits", "--protocol", "fewlabel"], "few-label"),
        (["train", "digits", "--lr", "-1"], "--lr is -1.0; expected a positive number"),
        (["train", "digits", "--resume"], "nothing to resume"),
        (["train", "digits", "--resume", "--overwrite"], "give one of them"),
        (["train"], "which data?"),
        (["train", "no/such/table.csv"], "no/such/table.csv"),
        (["compare", "digits", "--models", "mlp", "gnc"], "unknown model 'gnc'; did you mean 'gcn'?"),
        (["compare", "digits", "--models", "mlp", "mlp"], "expected different names"),
        (["eval", "nowhere"], "nowhere is not a run"),
        (
            ["particles", "nowhere"],
            "nowhere is no folder; expected that of a run, or of a Hugging Face model",
        ),
        (["particles", "."], ". is neither a run, it has no config.toml, nor a Hugging Face model"),
        (["particles", ".", "--scale", "0"], "--scale is 0.0; expected a distance above 0"),
        (["predict", "nowhere", "digits"], "nowhere is not a run"),
        (["predict", "nowhere", "--out", "no/such/folder/a.csv"], "the folder no/such/folder does not exist"),
    ],
)
def test_mistakes_get_one_line_on_stderr_and_exit_code_2(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("osmose: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert main([*words, "--json"]) == 2
    assert message in json.loads(capsys.readouterr().out)["error"]
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_unknown_option_gives_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "digits", "--hiden", "3"])
    assert stop.value.code == 2
    assert "--hidden" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "digits", "--hiden", "3", "--json"])
    assert "stderr says why" in json.loads(capsys.readouterr().out)["error"]


def test_debug_keeps_the_traceback() -> None:
    with pytest.raises(ValueError, match="did you mean"):
        main(["train", "digitz", "--debug"])


def test_a_missing_package_is_named() -> None:
    code = "import sys; sys.modules['accelerate'] = None; from osmose.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "digits"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == "osmose: the package accelerate is not installed; pip install 'osmose[all]' brings it\n"
    )


def test_a_reader_that_leaves_is_no_error() -> None:
    code = (
        "import sys, time; time.sleep(0.3); from osmose.cli import main; sys.exit(main(['list', '--json']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0


def test_default_folder_never_takes_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = Path("runs/a")
    assert default_folder("a", resume=False, overwrite=False) == first
    first.mkdir(parents=True)
    assert default_folder("a", resume=False, overwrite=False) == first, "unfinished: the verb decides"
    (first / "result.json").write_text("{}")
    assert default_folder("a", resume=False, overwrite=False) == Path("runs/a-2")
    assert default_folder("a", resume=True, overwrite=False) == first
    assert default_folder("a", resume=False, overwrite=True) == first


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("osmose ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("digits --patch 3", "--patch is not a setting of difformer-s for nodes; it has --alpha"),
        ("digits --model gcn --heads 3", "--heads is not a setting of gcn for nodes"),
        ("digits-images --context 3", "--context is not a setting of flowformer for images"),
        ("japanese-vowels --model transformer --preset nlp", "--preset is not a setting of transformer"),
        ("tinyshakespeare --stages 1", "--stages is not a setting of flowformer for text"),
    ],
)
def test_a_setting_that_the_model_lacks_is_refused(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words.split()]) == 2
    assert message in capsys.readouterr().err
