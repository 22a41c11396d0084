"""`MLLMPruner` in memory; and every family through it, saved, and loaded by a process that never had this package."""

import gc
import hashlib
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from checkpoint import fresh_process, tiny_llava
from families import FAMILIES
from families.sizes import SPECIAL_TOKENS
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from optimum_mllm_prune import MLLMPruner, PruningConfig, PruningPlan, UserInputError, pruner
from optimum_mllm_prune.backbone.text_config import text_config
from optimum_mllm_prune.checkpoint import Verification, hub, trial_inputs, weight_bytes
from optimum_mllm_prune.importance import Scores


BY_WEIGHTS = PruningConfig(ratio=0.3, importance="magnitude_l2")
# Where 30 % cannot be had, or one kind of width alone would give it.
RATIOS = {"aria": 0.09, "qwen3_vl_moe": 0.22}
# Groups of query heads, where a family keeps its key-value heads.
BY_QUERY_HEADS = ["llava_llama_gqa", "llava_qwen3", "llava_phi3", "qwen3_vl", "paligemma", "gemma3", "lfm2_vl"]
WAYS = (
    [(name, "layers") for name in FAMILIES]
    + [(name, "width") for name in FAMILIES]
    + [(name, "query heads") for name in BY_QUERY_HEADS]
)


def config_for(family, way):
    if way == "layers":
        return PruningConfig(num_layers=1, importance="magnitude")
    if way == "query heads":
        return PruningConfig(ratio=0.25, importance="magnitude_l2", head_unit="query")
    return PruningConfig(ratio=RATIOS.get(family, 0.3), importance="magnitude_l2")


def fingerprint(model):
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


@pytest.fixture
def unverified(monkeypatch):
    """Spare the fresh process where the test is about something else."""

    def agree(*_, **__):
        return Verification(0.0, [], [], True, 1e-7, True, "text", "LlavaForConditionalGeneration")

    monkeypatch.setattr(pruner, "verify", agree)


class TestInMemory:
    @pytest.mark.parametrize("importance", ["taylor", "taylor_group", "activation", "magnitude_l2"])
    def test_a_plan_touches_no_weight(self, importance):
        model = tiny_llava.model()
        before, flags = fingerprint(model), [p.requires_grad for p in model.parameters()]
        rows = None if importance == "magnitude_l2" else tiny_llava.rows()
        made = MLLMPruner(model, tiny_llava.processor())
        plan = made.plan(PruningConfig(ratio=0.3, importance=importance, num_samples=3), dataset=rows)
        assert isinstance(plan, PruningPlan)
        assert made.model is model
        assert fingerprint(model) == before
        assert [p.requires_grad for p in model.parameters()] == flags
        assert all(p.grad is None for p in model.parameters())

    def test_prune_returns_what_the_pruner_holds(self):
        original = tiny_llava.model()
        made = MLLMPruner(original)
        plan = made.plan(BY_WEIGHTS)
        pruned = made.prune(plan)
        assert pruned is made.model is not original
        assert sum(p.numel() for p in pruned.parameters()) == plan.parameters["after"]
        assert type(pruned) is type(original)

    def test_prune_takes_a_config(self):
        planned = MLLMPruner(tiny_llava.model()).plan(BY_WEIGHTS)
        made = MLLMPruner(tiny_llava.model())
        made.prune(BY_WEIGHTS)
        assert sum(p.numel() for p in made.model.parameters()) == planned.parameters["after"]

    def test_a_second_time_is_refused(self):
        made = MLLMPruner(tiny_llava.model())
        made.prune(BY_WEIGHTS)
        for again in (lambda: made.prune(BY_WEIGHTS), lambda: made.score(BY_WEIGHTS)):
            with pytest.raises(UserInputError, match=r"^this model was pruned already: make a new MLLMPruner"):
                again()

    def test_saving_comes_after_pruning(self, tmp_path):
        with pytest.raises(UserInputError, match=r"^there is no pruned model to save: call prune before"):
            MLLMPruner(tiny_llava.model()).save_pretrained(tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_rows_need_a_processor(self):
        with pytest.raises(UserInputError, match=r"^importance 'reconstruction' needs a processor to read rows"):
            MLLMPruner(tiny_llava.model()).plan(PruningConfig(), dataset=tiny_llava.rows())

    def test_a_metric_of_data_needs_rows(self):
        with pytest.raises(
            UserInputError, match=r"^importance 'reconstruction' needs calibration rows: give a dataset"
        ):
            MLLMPruner(tiny_llava.model(), tiny_llava.processor()).plan(PruningConfig())

    def test_a_plan_of_another_model_is_refused(self):
        plan = MLLMPruner(FAMILIES["llava_llama_gqa"].build()).plan(BY_WEIGHTS)
        made = MLLMPruner(tiny_llava.model())
        with pytest.raises(UserInputError, match=r"^the plan was made for another model \(llava, "):
            made.prune(plan)

    def test_a_refused_plan_leaves_the_model_as_it_is(self):
        model = tiny_llava.model()
        before = fingerprint(model)
        made = MLLMPruner(model)
        with pytest.raises(UserInputError):
            made.prune(MLLMPruner(FAMILIES["llava_llama_gqa"].build()).plan(BY_WEIGHTS))
        assert fingerprint(model) == before
        made.prune(BY_WEIGHTS)

    def test_rows_may_be_plain_dicts(self):
        rows = [dict(tiny_llava.rows()[i]) for i in range(3)]
        made = MLLMPruner(tiny_llava.model(), tiny_llava.processor())
        plan = made.plan(PruningConfig(ratio=0.2), dataset=rows)
        assert plan.config["dataset"] == "rows in memory"
        assert made.calibration["samples"] == 3

    def test_scores_serve_another_ratio(self):
        made = MLLMPruner(tiny_llava.model(), tiny_llava.processor())
        small = made.plan(PruningConfig(ratio=0.2, num_samples=4), dataset=tiny_llava.rows())
        large = made.plan(PruningConfig(ratio=0.5), scores=made.scores)
        assert large.scores == small.scores
        assert all(set(units) < set(large.removed_channels[name]) for name, units in small.removed_channels.items())

    def test_local_paths_are_not_written_down(self, tmp_path):
        folder = tiny_llava.save_rows(tmp_path / "my-rows")
        made = MLLMPruner(tiny_llava.model(), tiny_llava.processor(), base_model=str(tmp_path))
        for config, dataset in (
            (PruningConfig(num_samples=2, dataset=str(folder)), folder),
            (PruningConfig(num_samples=2), str(folder)),
        ):
            plan = made.plan(config, dataset=dataset)
            assert plan.config["dataset"] == made.calibration["dataset"] == "my-rows"
            assert str(tmp_path) not in plan.to_json()


class TestSaved:
    def test_without_a_processor(self, tmp_path):
        made = MLLMPruner(tiny_llava.model())
        pruned = made.prune(BY_WEIGHTS)
        ids = torch.arange(100, 112).unsqueeze(0)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        expected = logits(pruned, inputs)
        report = made.save_pretrained(tmp_path / "out")
        assert report.verification.inputs == "text"
        assert report.verification.max_abs_logit_difference == 0
        assert report.verification.generated_tokens_equal is True
        assert not (tmp_path / "out" / "processor_config.json").exists()
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        assert torch.equal(logits(model, inputs), expected)
        assert made.model is pruned

    def test_with_inputs_of_ones_own_and_no_model_kept(self, tmp_path):
        family = FAMILIES["qwen2_5_vl"]
        made = MLLMPruner(family.build())
        made.prune(BY_WEIGHTS)
        report = made.save_pretrained(
            tmp_path / "out", verification_inputs=family.inputs(made.model.config), keep_model=False
        )
        assert report.verification.inputs == "image + text"
        assert report.verification.max_abs_logit_difference == 0
        assert made.model is None
        with pytest.raises(UserInputError, match="no pruned model to save"):
            made.save_pretrained(tmp_path / "again")

    def test_several_files_of_weights(self, tmp_path):
        made = MLLMPruner(tiny_llava.model(), tiny_llava.processor())
        made.prune(BY_WEIGHTS)
        report = made.save_pretrained(tmp_path / "out", max_shard_size="1MB")
        shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
        assert len(shards) > 5
        assert not (tmp_path / "out" / "model.safetensors").exists()
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == {shard.name for shard in shards}
        assert report.verification.max_abs_logit_difference == 0
        assert report.verification.missing_keys == report.verification.unexpected_keys == []
        again = MLLMPruner.from_pretrained(str(tmp_path / "out"))
        assert fingerprint(again.model) == fingerprint(made.model)

    @pytest.mark.usefixtures("unverified")
    def test_the_folder_that_the_model_came_from_is_never_replaced(self, tmp_path):
        folder = tiny_llava.save_model(tmp_path / "llava")
        before = tiny_llava.tree(tmp_path)
        made = MLLMPruner.from_pretrained(str(folder))
        made.prune(BY_WEIGHTS)
        with pytest.raises(UserInputError, match="which this run reads: name another folder"):
            made.save_pretrained(folder, overwrite=True)
        assert tiny_llava.tree(tmp_path) == before

    def test_a_model_that_was_cast_to_bfloat16(self, tmp_path):
        # Casting takes the buffers along, which a reload keeps in fp32: the pruned model must have them so as well.
        made = MLLMPruner(tiny_llava.model().to(torch.bfloat16), tiny_llava.processor())
        made.prune(BY_WEIGHTS)
        report = made.save_pretrained(tmp_path / "out")
        assert report.verification.max_abs_logit_difference == 0
        assert report.environment["dtype"] == "bfloat16"

    def test_generation_that_differs_by_nature_is_not_compared(self, tmp_path):
        made = MLLMPruner(FAMILIES["paligemma"].build())
        made.prune(BY_WEIGHTS)
        report = made.save_pretrained(tmp_path / "out")
        assert report.verification.generated_tokens_equal is None
        assert "not compared: the original's own differs" in (tmp_path / "out" / "README.md").read_text()

    def test_default_text_holds_no_image_token(self):
        model = tiny_llava.model()
        drawn = trial_inputs(model, None)["input_ids"]
        assert drawn.shape == (1, 8)
        for token in drawn[0].tolist():
            model.config.image_token_index = token
            others = trial_inputs(model, None)["input_ids"]
            assert others.shape == (1, 8)
            assert token not in others

    @pytest.mark.usefixtures("unverified")
    def test_the_original_is_not_overwritten_unasked(self, tmp_path):
        made = MLLMPruner(tiny_llava.model())
        made.prune(BY_WEIGHTS)
        made.save_pretrained(tmp_path / "out")
        before = tiny_llava.tree(tmp_path)
        with pytest.raises(UserInputError, match="exists already: name another folder, or add --overwrite"):
            made.save_pretrained(tmp_path / "out")
        assert tiny_llava.tree(tmp_path) == before
        made.save_pretrained(tmp_path / "out", overwrite=True)
        assert tiny_llava.tree(tmp_path) != before

    @pytest.mark.usefixtures("unverified")
    def test_push_uploads_what_was_verified(self, monkeypatch):
        pushed = {}

        def take(folder, repo_id, private, token, revision):
            pushed.update({path.name: path.stat().st_size for path in folder.iterdir()}, name=folder.name)
            return "https://example.org/commit"

        monkeypatch.setattr(hub, "upload", take)
        made = MLLMPruner(tiny_llava.model(), tiny_llava.processor())
        made.prune(BY_WEIGHTS)
        assert made.push_to_hub("me/smaller", private=True) == "https://example.org/commit"
        assert pushed["name"] == "smaller"
        assert {"model.safetensors", "README.md", "pruning_plan.json", "processor_config.json"} <= pushed.keys()


class TestPush:
    @pytest.fixture
    def made(self, unverified, monkeypatch, tmp_path):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        made = MLLMPruner(tiny_llava.model())
        made.prune(BY_WEIGHTS)
        return made

    def test_a_name_that_the_hub_refuses_is_told_first(self, made, tmp_path):
        with pytest.raises(UserInputError, match=r"^'me/my model' is no name of a repository"):
            made.push_to_hub("me/my model")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("error", "told"), [(OSError("no network"), UserInputError), (KeyboardInterrupt, None)])
    def test_what_was_not_pushed_lies_where_the_message_says(self, made, monkeypatch, error, told):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
        with pytest.raises(told or KeyboardInterrupt) as end:
            made.push_to_hub("me/it")
        folder = Path(str(end.value).split("'")[1])
        assert (folder / "model.safetensors").is_file()
        assert str(end.value).rstrip(".").endswith(f"push it with `hf upload me/it {folder}`")

    def test_nothing_is_left_where_saving_fails(self, made, monkeypatch, tmp_path):
        def fail(*_, **__):
            raise ValueError("surprise")

        monkeypatch.setattr(pruner, "verify", fail)
        with pytest.raises(ValueError, match="surprise"):
            made.push_to_hub("me/it")
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_left_after_a_push(self, made, monkeypatch, tmp_path):
        monkeypatch.setattr(hub, "upload", lambda *_: "https://example.org/commit")
        made.push_to_hub("me/it")
        assert list(tmp_path.iterdir()) == []


class TestScoresOfAPlan:
    """A checkpoint is saved with the scores that its plan was made from, or with none."""

    def test_another_calibration_came_after(self, unverified, tmp_path):
        made = MLLMPruner(tiny_llava.model(), tiny_llava.processor())
        first = made.plan(PruningConfig(ratio=0.2, num_samples=3), dataset=tiny_llava.rows())
        second = made.plan(PruningConfig(ratio=0.2, num_samples=5, importance="wanda"), dataset=tiny_llava.rows())
        assert first.scores != second.scores == made.scores.fingerprint
        made.prune(first)
        report = made.save_pretrained(tmp_path / "out")
        assert Scores.load(tmp_path / "out").fingerprint == first.scores
        assert (report.calibration["samples"], report.calibration["importance"]) == (3, "reconstruction")

    def test_scores_that_were_given_keep_what_is_known_of_them(self, unverified, tmp_path):
        made = MLLMPruner(tiny_llava.model(), tiny_llava.processor())
        made.plan(PruningConfig(ratio=0.2, num_samples=3), dataset=tiny_llava.rows())
        made.prune(made.plan(PruningConfig(ratio=0.4), scores=made.scores))
        assert made.save_pretrained(tmp_path / "out").calibration["samples"] == 3

    @pytest.mark.parametrize("beside", ["its own", "of another plan", "none"])
    def test_a_plan_from_elsewhere(self, unverified, tmp_path, beside):
        maker = MLLMPruner(tiny_llava.model())
        plan = maker.plan(BY_WEIGHTS)
        others = maker.score(PruningConfig(importance="random"))
        made = MLLMPruner(tiny_llava.model())
        scores = {"its own": maker._calibrated[plan.scores][0], "of another plan": others, "none": None}[beside]
        made.prune(made.check(plan, scores))
        made.save_pretrained(tmp_path / "out")
        assert (tmp_path / "out" / "pruning_scores.safetensors").exists() == (beside == "its own")
        card = (tmp_path / "out" / "README.md").read_text()
        assert ("pruning_scores.safetensors" in card) == (beside == "its own")


class TestMemory:
    @pytest.mark.parametrize("kept", [True, False])
    def test_the_model_is_gone_before_the_fresh_process_loads_its_own(self, monkeypatch, tmp_path, kept):
        made = MLLMPruner(tiny_llava.model())
        made.prune(BY_WEIGHTS)
        # A model may hold itself, as one spread by accelerate's hooks does: then only the collector frees it.
        object.__setattr__(made.model, "itself", made.model)
        alive = weakref.ref(made.model)

        def look(*_, **__):
            assert (alive() is not None) == kept
            return Verification(0.0, [], [], True, 1e-7, True, "text", "Any")

        monkeypatch.setattr(pruner, "verify", look)
        gc.disable()
        try:
            made.save_pretrained(tmp_path / "out", keep_model=kept)
        finally:
            gc.enable()

    def test_the_size_is_known_from_the_plan(self):
        made = MLLMPruner(tiny_llava.model())
        plan = made.plan(BY_WEIGHTS)
        expected = made.bytes_after(plan)
        made.prune(plan)
        assert expected == weight_bytes(made.model)


class TestLicense:
    def test_it_is_read_before_the_work_and_written_into_the_card(self, unverified, monkeypatch, tmp_path):
        folder = tiny_llava.save_model(tmp_path / "llava")
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
        made = MLLMPruner.from_pretrained(str(folder))
        (folder / "README.md").unlink()
        made.prune(BY_WEIGHTS)
        made.save_pretrained(tmp_path / "out")
        assert "\nlicense: mit\n" in (tmp_path / "out" / "README.md").read_text()

    def test_the_hub_is_asked_as_for_the_model(self, monkeypatch, tmp_path):
        asked = {}

        def take(model_id, **hub):
            asked.update(hub)

        monkeypatch.setattr(pruner, "license_of", take)
        folder = str(tiny_llava.save_model(tmp_path / "llava"))
        MLLMPruner.from_pretrained(folder, token="t", cache_dir=str(tmp_path))
        assert asked == {"revision": None, "token": "t", "cache_dir": str(tmp_path)}


class TestFromPretrained:
    def test_model_and_processor(self, tmp_path):
        made = MLLMPruner.from_pretrained(str(tiny_llava.save_model(tmp_path / "llava")), dtype="bfloat16")
        assert made.model.dtype == torch.bfloat16
        assert not made.model.training
        assert type(made.processor) is type(tiny_llava.processor())
        assert made.timings["load"] > 0

    def test_of_the_hub(self, tmp_path):
        # As the Hub's client leaves a model in its cache, which is all that can be asked without a network.
        home, commit = tmp_path / "models--me--llava", "0123456789abcdef" * 2 + "01234567"
        folder = tiny_llava.save_model(home / "snapshots" / commit)
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text(commit)
        made = MLLMPruner.from_pretrained("me/llava", cache_dir=str(tmp_path))
        assert made.base_model_license == "mit"
        found = made.plan(BY_WEIGHTS).model
        assert (found["base_model"], found["base_model_revision"]) == ("me/llava", commit)
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(UserInputError, match=r"^the weights of 'me/llava' are pickled, which may run any code"):
            MLLMPruner.from_pretrained("me/llava", cache_dir=str(tmp_path))

    def test_a_local_folder_is_no_base_model(self, tmp_path):
        made = MLLMPruner.from_pretrained(str(tiny_llava.save_model(tmp_path / "llava")))
        assert made.plan(BY_WEIGHTS).model["base_model"] is None

    def test_there_is_none(self, tmp_path):
        with pytest.raises(UserInputError, match=r"holds no config\.json"):
            MLLMPruner.from_pretrained(str(tmp_path))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the fresh process says of every family and way; a family that cannot be pruned has its error there."""
    home = tmp_path_factory.mktemp("families")
    folders, errors, plans = {}, {}, {}
    for family, way in WAYS:
        folder = home / f"{family} {way}"
        try:
            plans[family, way] = saved(family, way, folder)
            folders[family, way] = folder
        except Exception as error:
            errors[family, way] = {"failure": f"{type(error).__name__}: {error}"}
    job = {"folders": [str(folder) for folder in folders.values()], "special_tokens": list(SPECIAL_TOKENS)}
    (home / "job.json").write_text(json.dumps(job))
    source = Path(fresh_process.__file__).read_text()
    done = subprocess.run(
        [sys.executable, "-c", source, str(home / "job.json")], cwd=home, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = {key: json.loads((folder / "found.json").read_text()) for key, folder in folders.items()}
    return told | errors, plans


def saved(family, way, folder):
    """Prune a family, save it with what it says to both kinds of input; the plan and whether text can be compared."""
    made = MLLMPruner(FAMILIES[family].build())
    backbone = made.backbone()
    kinds = {group.kind for group in backbone.groups()[0]}
    before = text_config(made.model.config).num_hidden_layers
    plan = made.plan(config_for(family, way))
    model = made.prune(plan)
    model.save_pretrained(folder / "model")
    said = {}
    for kind, inputs in (
        ("image", FAMILIES[family].inputs(model.config)),
        ("text", FAMILIES[family].text_inputs(model.config)),
    ):
        said |= {f"{kind}/inputs/{name}": tensor.contiguous() for name, tensor in inputs.items()}
        said[f"{kind}/logits"] = logits(model, inputs).contiguous()
    save_file(said, folder / "said.safetensors")
    return plan, kinds, before


@pytest.mark.parametrize(("family", "way"), WAYS, ids=[" ".join(pair) for pair in WAYS])
def test_families(found, family, way):
    told, plans = found
    seen = told[family, way]
    assert "failure" not in seen, seen
    plan, kinds, layers = plans[family, way]
    if way == "layers":
        assert len(plan.removed_layers) == 1 < layers
    else:
        assert plan.removed_layers == []
        # Every width that the family can express is made smaller.
        assert ({"heads"} if plan.removed_heads else set()) | (
            {"channels"} if plan.removed_channels else set()
        ) == kinds
        assert plan.head_unit == ("query" if way == "query heads" or family == "paligemma" else "group")
    assert seen["without_package"]
    assert seen["complaints"] == {}
    for kind in ("image", "text"):
        assert seen[kind]["difference"] == 0.0
        assert seen[kind]["equal_tokens"]
        assert seen[kind]["cache_difference"] < 1e-3


def test_there_are_enough_families():
    assert len({FAMILIES[name].config().model_type for name in FAMILIES}) >= 20
