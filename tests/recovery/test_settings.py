"""Arguments from file, settings and flags; every mistake by its text."""

import pytest

from optimum_mllm_prune import UserInputError
from optimum_mllm_prune.recovery.settings import recovery_arguments


@pytest.fixture
def made(tmp_path):
    def make(config=None, settings=(), held_out=False, **given):
        file = None
        if config is not None:
            file = tmp_path / "recovery.yaml"
            file.write_text(config, encoding="utf-8")
        return recovery_arguments(tmp_path / "out", file, settings, {"use_cpu": True, **given}, held_out)

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


def test_yaml_reads_no_as_false_and_large_numbers_as_texts(made):
    args = made("save_strategy: no\n", ["eval_strategy=off", "max_steps=1e3", "report_to=[]", "tf32=null", "loss=sft"])
    assert (args.save_strategy, args.eval_strategy, args.max_steps) == ("no", "no", 1000)


def test_held_out_rows_are_looked_at_after_every_pass_unless_asked_otherwise(made):
    assert made().eval_strategy == "no"
    assert made(held_out=True).eval_strategy == "epoch"
    assert made(held_out=True, settings=["eval_strategy=steps"]).eval_strategy == "steps"


@pytest.mark.parametrize("setting", ["eval_strategy=steps", "eval_on_start=true"])
def test_nothing_is_evaluated_without_rows(made, setting):
    assert refusal(made, settings=[setting]) == (
        "eval_strategy and eval_on_start ask for held-out rows, and there are none: leave them out."
    )


def test_held_out_rows_that_are_not_looked_at(made):
    assert refusal(made, settings=["eval_strategy=no"], held_out=True) == (
        "the held-out rows are not looked at with eval_strategy 'no': leave that or the rows out."
    )


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("bf16=maybe", "'bf16' must be true or false, got 'maybe'."),
        ("activation_checkpointing=x", "'activation_checkpointing' must be true or false, got 'x'."),
        ("seed=x", "'seed' must be a whole number, got 'x'."),
        ("lora_r=2.5", "'lora_r' must be a whole number, got '2.5'."),
        ("max_samples=true", "'max_samples' must be a whole number, got 'True'."),
        ("learning_rate=[1]", "'learning_rate' must be a number, got '[1]'."),
        ("learning_rate=null", "'learning_rate' must be a number, got 'None'."),
        ("report_to=nope", "the training arguments do not fit together: nope is not supported, only "),
        ("accelerator_config=none.json", "the training arguments do not fit together: [Errno 2] "),
        ("load_best_model_at_end=true",
         "the training arguments do not fit together: --load_best_model_at_end requires the save and eval strategy to "
         'match, except when --save_strategy="best", but found - Evaluation strategy: '),
    ],
)  # fmt: skip
def test_a_value_of_another_kind(made, setting, line):
    said = refusal(made, settings=[setting])
    assert said.startswith(line)
    assert "\n" not in said


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
