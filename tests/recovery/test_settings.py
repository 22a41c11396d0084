"""Arguments from file, settings and flags; every mistake by its text."""

import pytest

from optimum_mllm_prune import UserInputError
from optimum_mllm_prune.recovery.settings import recovery_arguments


@pytest.fixture
def made(tmp_path):
    def make(config=None, settings=(), **given):
        file = None
        if config is not None:
            file = tmp_path / "recovery.yaml"
            file.write_text(config, encoding="utf-8")
        return recovery_arguments(tmp_path / "out", file, settings, {"use_cpu": True, **given})

    return make


def refusal(call, *words, **keys):
    with pytest.raises(UserInputError) as error:
        call(*words, **keys)
    return str(error.value)


def test_the_defaults_are_those_of_the_paper(made):
    args = made()
    assert (args.learning_rate, args.lr_scheduler_type, args.warmup_steps, args.weight_decay) == (
        4e-5,
        "cosine",
        0.03,
        0.05,
    )
    assert (args.lora_r, args.lora_alpha, args.lora_dropout, args.num_train_epochs) == (16, 32, 0.05, 1.0)
    assert args.recipe().weights == {"sft": 0.5, "hidden": 0.5}
    assert args.report_to == []


def test_flags_go_before_settings_and_settings_before_the_file(made):
    args = made("learning_rate: 1e-3\nseed: 1\nmax_steps: 5\n", ["seed=2", "max-steps=6"], max_steps=7, seed=None)
    assert (args.learning_rate, args.seed, args.max_steps) == (1e-3, 2, 7)


def test_any_argument_of_trainer_can_be_given(made):
    args = made("optim: adafactor\nadam_beta2: 0.98\n", ["max_grad_norm=0.5", "lr_scheduler_kwargs={num_cycles: 0.4}"])
    assert (args.optim, args.adam_beta2, args.max_grad_norm) == ("adafactor", 0.98, 0.5)
    assert args.lr_scheduler_kwargs == {"num_cycles": 0.4}


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ("learning_rat: 1", "there is no training argument 'learning_rat': did you mean 'learning_rate'?"),
        ("zzz: 1", "there is no training argument 'zzz': see --help, or transformers' TrainingArguments."),
        ("learning_rate: fast", "'learning_rate' must be a number, got 'fast'."),
        ("output_dir: x", "'output_dir' is set by the command itself: leave it out."),
        ("- a\n- b", "the config 'recovery.yaml' holds no keys: write lines such as learning_rate: 1e-4."),
        ("loss: best",
         "unknown loss 'best': use one of sft, kd, hidden, sft+kd, sft+hidden, sft+hidden+kd, or weights such as "
         "sft=0.5,hidden=0.5."),
        ("train: all", "unknown train 'all': use one of projector, lora, full."),
        ("lr_scheduler_type: steep", "the training arguments do not fit together: steep is not a valid SchedulerType"
         ),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file(made, config, line):
    assert refusal(made, config).startswith(line)


def test_a_file_that_is_no_yaml(made):
    line = refusal(made, "a: [1")
    assert line.startswith("the config 'recovery.yaml' cannot be read (while parsing a flow sequence")
    assert line.endswith("): give a YAML file.")


def test_no_such_file(tmp_path):
    line = refusal(recovery_arguments, tmp_path, tmp_path / "none.yaml", [], {})
    assert line.startswith("the config 'none.yaml' cannot be read ([Errno 2]")


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("seed", "'seed' is no setting: write KEY=VALUE, such as learning_rate=1e-4."),
        ("seed=[1", "the value of 'seed=[1' cannot be read: write it as YAML would have it."),
    ],
)
def test_what_is_wrong_in_a_setting(made, setting, line):
    assert refusal(made, settings=[setting]) == line
