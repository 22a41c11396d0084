"""Every mistake is told in one line on stderr, ends with 2, and leaves nothing behind."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from optimum_mllm_prune.importance import SCORES_NAME


BY_WEIGHTS = ("--importance", "magnitude_l2")
LAYERS = ("--method", "layer", "--importance", "magnitude")


class TestModel:
    @pytest.mark.parametrize("name", ["no-such/model", "/no/such/folder", "./missing", "missing"])
    def test_there_is_none(self, refused, name):
        line = refused("--model", name, *BY_WEIGHTS)
        assert line.startswith(f"no model '{name}': it is neither a local folder nor reachable on the Hub (")

    def test_folder_without_config(self, refused, cwd):
        (cwd / "empty").mkdir()
        line = refused("--model", "empty", *BY_WEIGHTS)
        assert line == "'empty' holds no config.json: give the folder of a saved model, or a Hub id."

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("{oops", "not a valid JSON file"),
            ("[]", "Should have a `model_type` key"),
            ('{"model_type": "nonesuch"}', "model type `nonesuch`"),
            ('{"model_type": "llava", "text_config": 3}', "Validation error for field 'text_config': TypeError"),
        ],
    )
    def test_config_cannot_be_read(self, refused, cwd, text, why):
        (cwd / "odd").mkdir()
        (cwd / "odd" / "config.json").write_text(text)
        line = refused("--model", "odd", *BY_WEIGHTS)
        assert line.startswith("the config of 'odd' cannot be read: ")
        assert why in line

    def test_no_vision_language_model(self, refused, cwd):
        config = LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        LlamaForCausalLM(config).save_pretrained(cwd / "llama")
        assert refused("--model", "llama", *BY_WEIGHTS) == (
            "model type 'llama' is not a vision-language model: give one that AutoModelForImageTextToText loads."
        )

    def test_no_processor(self, refused, cwd, llava):
        (cwd / "bare").mkdir()
        shutil.copy(llava / "config.json", cwd / "bare")
        line = refused("--model", "bare", *BY_WEIGHTS)
        assert line.startswith("The processor of 'bare' cannot be loaded: ")

    def test_no_code_from_the_repository(self, refused, cwd, llava):
        shutil.copytree(llava, cwd / "own")
        config = json.loads((cwd / "own" / "config.json").read_text())
        names = {"AutoConfig": "own.OwnConfig", "AutoModelForImageTextToText": "own.OwnModel"}
        config |= {"model_type": "own_llava", "auto_map": names}
        (cwd / "own" / "config.json").write_text(json.dumps(config))
        for words in ((), ("--trust-remote-code",)):
            assert refused("--model", "own", *BY_WEIGHTS, *words) == (
                "'own' needs code from its repository, which the pruned checkpoint would need too: give a model that "
                "transformers itself has a class for."
            )

    def test_no_processor_from_the_repository(self, refused, cwd, llava):
        shutil.copytree(llava, cwd / "own")
        config = json.loads((cwd / "own" / "processor_config.json").read_text())
        config |= {"processor_class": "OwnProcessor", "auto_map": {"AutoProcessor": "own.OwnProcessor"}}
        (cwd / "own" / "processor_config.json").write_text(json.dumps(config))
        line = refused("--model", "own", *BY_WEIGHTS)
        assert line.startswith("The processor of 'own' needs code from its repository, which the pruned checkpoint ")


class TestWeights:
    @pytest.fixture
    def weights(self, cwd, llava):
        shutil.copytree(llava, cwd / "damaged")
        return cwd / "damaged" / "model.safetensors"

    @pytest.mark.parametrize(
        "damage",
        [
            lambda whole: whole[: len(whole) // 2],
            lambda whole: whole[:100],
            lambda whole: b"",
            lambda whole: bytes(5000),
            lambda whole: b"words and no tensors" * 100,
        ],
        ids=["truncated", "header cut", "empty", "zeros", "words"],
    )
    def test_damaged(self, refused, weights, damage):
        weights.write_bytes(damage(weights.read_bytes()))
        line = refused("--model", "damaged", *BY_WEIGHTS)
        assert line.startswith("the weights of 'damaged' are damaged or cut short (Error while deserializing header: ")
        assert line.endswith("): fetch them again.")

    def test_absent(self, refused, weights):
        weights.unlink()
        line = refused("--model", "damaged", *BY_WEIGHTS)
        assert line.startswith("the weights of 'damaged' cannot be loaded: Error no file named model.safetensors")

    def test_pickled(self, refused, weights):
        weights.rename(weights.parent / "pytorch_model.bin")
        line = refused("--model", "damaged", *BY_WEIGHTS)
        assert line.startswith(
            "the weights of 'damaged' are pickled (pytorch_model.bin), which may run any code: convert"
        )

    def test_one_is_missing(self, refused, weights):
        kept = load_file(weights)
        lost = next(name for name in kept if name.endswith("layers.3.mlp.up_proj.weight"))
        del kept[lost]
        save_file(kept, weights, metadata={"format": "pt"})
        assert refused("--model", "damaged", *BY_WEIGHTS) == (
            "the checkpoint 'damaged' lacks 1 of the model's weights (first: "
            "model.language_model.layers.3.mlp.up_proj.weight); loaded so, they would be random."
        )

    def test_one_has_another_shape(self, refused, weights):
        tensors = load_file(weights)
        name = next(name for name in tensors if name.endswith("layers.3.mlp.up_proj.weight"))
        tensors[name] = tensors[name][:-8].contiguous()
        save_file(tensors, weights, metadata={"format": "pt"})
        assert refused("--model", "damaged", *BY_WEIGHTS) == (
            "the checkpoint 'damaged' has in another shape 1 of the model's weights (first: "
            "model.language_model.layers.3.mlp.up_proj.weight); loaded so, they would be random."
        )


class TestSize:
    @pytest.mark.parametrize("ratio", ["0", "-0.1", "1", "1.5", "nan"])
    def test_ratio_out_of_range(self, refused, llava, ratio):
        assert refused("--model", llava, f"--ratio={ratio}") == (
            f"ratio must lie between 0 and 1 (0.15 removes 15 % of the language backbone), got {float(ratio)}."
        )

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            ((*BY_WEIGHTS, "--ratio=0.001"),
             "ratio 0.0010 removes nothing: less than half a step of this architecture, ask for more."),
            ((*LAYERS, "--ratio=0.001"),
             "ratio 0.0010 removes nothing: one layer is 0.1184 of the language backbone, ask for more or use method "
             "'width'."),
            ((*LAYERS, "--ratio=0.99"),
             "ratio 0.990 would remove everything: the layers that may go are 0.829 of the language backbone, "
             "ask for less."),
            ((*LAYERS, "--num-layers=8"),
             "num_layers 8 would leave nothing: the model has 8 layers, remove fewer."),
            ((*LAYERS, "--num-layers=40"),
             "num_layers 40 would leave nothing: the model has 8 layers, remove fewer."),
            ((*LAYERS, "--num-layers=0"), "num_layers must be a whole number of at least 1, got 0."),
            ((*LAYERS, "--num-layers=-1"), "num_layers must be a whole number of at least 1, got -1."),
            ((*LAYERS, "--protect-layers", "9"), "protected_layers has 9, the model's layers are 0 to 7."),
            ((*BY_WEIGHTS, "--target-params=5B"),
             "target_params must lie between 323,232 (all but the language backbone) and 2,660,672 (the model as it "
             "is), got 5,000,000,000."),
            (("--ratio=0.2", "--num-layers=2"),
             "ratio and num_layers both say how much to remove: give one of them."),
            (("--method=width", "--num-layers=2"),
             "num_layers removes whole layers: use it with method 'layer', or give a ratio."),
            ((*BY_WEIGHTS, "--channel-multiple=2048"),
             "channel_multiple 2048 is too coarse for the 365 of 416 MLP channels that are to stay: choose a smaller "
             "one."),
            ((*BY_WEIGHTS, "--channel-multiple=0"), "channel_multiple must be a whole number of at least 1, got 0."),
        ],
    )  # fmt: skip
    def test_it_cannot_be_had(self, refused, llava, words, line):
        assert refused("--model", llava, *words) == line

    def test_a_width_cannot_give_everything(self, refused, llava):
        line = refused("--model", llava, *BY_WEIGHTS, "--ratio=0.99")
        assert line.startswith("ratio 0.990 would remove everything: ")
        assert line.endswith("heads and MLP channels that may go are 0.946 of the language backbone, ask for less.")

    @pytest.mark.parametrize("words", [("--ratio=0.99",), ("--num-layers=8",)])
    def test_sizes_without_a_calibration_refuse_it_too(self, refused, llava, words):
        assert refused("--model", llava, "--dry-run", *words).endswith(("ask for less.", "remove fewer."))


class TestNames:
    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (("--method", "depth"), "unknown method 'depth': use one of auto, layer, width, mixed, hidden."),
            (("--importance", "gradient"),
             "unknown importance 'gradient': use one of activation, angular, block_influence, fluctuation, loss, "
             "magnitude, magnitude_l1, magnitude_l2, merge, random, reconstruction, taylor, taylor_group, "
             "taylor_mixed, taylor_second, wanda."),
            (("--importance", "block_influence"),
             "importance 'block_influence' does not score what method 'width' removes: use one of taylor, "
             "taylor_second, taylor_mixed, taylor_group, activation, wanda, fluctuation, reconstruction, "
             "magnitude_l1, magnitude_l2, random."),
            (("--num-layers", "2", "--importance", "taylor"),
             "importance 'taylor' does not score what method 'layer' removes: use one of block_influence, angular, "
             "loss, merge, magnitude, random."),
            (("--num-layers", "2", "--repair", "merge", "--repair-samples", "9"),
             "--repair-samples has no effect with --repair merge: leave it out."),
            (("--repair", "merge"), "repair 'merge' merges whole layers that go: use it with method 'layer'."),
            (("--num-layers", "2", "--importance", "loss", "--gradient-checkpointing"),
             "importance 'loss' takes no gradients: leave --gradient-checkpointing out."),
            (("--head-unit", "pair"), "unknown head_unit 'pair': use one of auto, group, query."),
            (("--dtype", "int8"), "unknown dtype 'int8': use one of auto, float32, bfloat16, float16."),
            (("--dataset", "no-such/rows"),
             "Dataset 'no-such/rows' is no local path, and the Hub cannot be reached; check the network or give a "
             "folder."),
            (("--dataset", "./rows.jsonl"),
             "Dataset './rows.jsonl' does not exist; give a file, a folder or a Hub dataset id."),
            ((*BY_WEIGHTS, "--dataset", "no-such/rows", "--repair", "none"),
             "importance 'magnitude_l2' looks at weights alone: leave --dataset out."),
            ((*BY_WEIGHTS, "--num-samples", "3"),
             "importance 'magnitude_l2' looks at weights alone: leave --num-samples out."),
            (("--importance", "wanda", "--gradient-checkpointing"),
             "importance 'wanda' takes no gradients: leave --gradient-checkpointing out."),
            (("--num-layers", "2", "--head-share", "0.5"),
             "--head-share has no effect with method 'layer': leave it out."),
            (("--protect-layers", "1"), "--protect-layers has no effect with method 'width': leave it out."),
            (("--private",), "--private is only used with --push-to-hub: add it, or leave --private out."),
            (("--head-share", "2"),
             "head_share must be 'auto' or lie between 0 (MLP channels alone) and 1 (as much of both), got 2.0."),
            (("--repo-id", "me/it"), "--repo-id is only used with --push-to-hub: add it, or leave --repo-id out."),
            (("--push-to-hub",), "--push-to-hub needs --repo-id, the repository to push to (me/my-model)."),
            (("--push-to-hub", "--repo-id", "me/it", "--dry-run"),
             "--dry-run writes no model: leave --push-to-hub out."),
            ((*BY_WEIGHTS, "--device", "cpu", "--device-map", "auto"),
             "device and device_map both say where the model goes: give one of them."),
            (("--frobnicate",), "unrecognized arguments: --frobnicate"),
            (("--rat=0.2",), "unrecognized arguments: --rat=0.2"),
            (("--ratio", "half"), "argument --ratio: invalid float value: 'half'"),
            (("--target-params", "few"),
             "argument --target-params: 'few' is not a number of parameters: write 5B, 500M or "
             "5000000000"),
        ],
    )  # fmt: skip
    def test_unknown_or_unfit(self, refused, llava, words, line):
        assert refused("--model", llava, *words) == line

    def test_no_model(self, refused):
        assert refused("--ratio", "0.2") == "the following arguments are required: -m/--model"

    @pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:x"])
    def test_no_such_device(self, refused, llava, rows, device):
        # Told before rows are read or weights loaded.
        line = refused("--model", llava, "--dataset", rows.parent / "gone.jsonl", "--device", device)
        assert line.startswith(f"device '{device}' cannot be used (")
        assert line.endswith("): use cpu, or a GPU that torch can see.")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    @pytest.mark.parametrize("flag", ["--device", "--device-map"])
    def test_no_gpu(self, refused, llava, flag):
        line = refused("--model", llava, *BY_WEIGHTS, flag, "cuda")
        assert "cannot be used (" in line or "cannot be loaded: " in line

    @pytest.mark.parametrize("repo_id", ["me/my model", "a/b/c"])
    def test_no_name_of_a_repository(self, refused, llava, repo_id):
        line = refused("--model", llava, *BY_WEIGHTS, "--push-to-hub", "--repo-id", repo_id)
        assert line.startswith(f"'{repo_id}' is no name of a repository (")

    @pytest.mark.parametrize(
        ("flag", "value"),
        [("OUTPUT", "out"), ("--num-samples", 3), ("--batch-size", 2), ("--dtype", "float32"), ("--seed", 7),
         ("--dataset-split", "train"), ("--device", "cpu"), ("--device-map", "auto")],
    )  # fmt: skip
    def test_sizes_alone_have_no_use_for_it(self, refused, llava, flag, value):
        words = [value] if flag == "OUTPUT" else [flag, value]
        assert refused("--model", llava, *words, "--dry-run") == (
            f"--dry-run without a --dataset shows sizes alone: leave {flag} out, or name a --dataset."
        )

    def test_sizes_alone_weigh_no_token(self, refused, llava):
        words = ("--importance", "wanda", "--modality-weights", "image=0")
        assert refused("--model", llava, *words, "--dry-run") == (
            "--dry-run without a --dataset shows sizes alone: leave --modality-weights out, or name a --dataset."
        )

    @pytest.mark.parametrize("weights", ["image", "image=half", "image=1,image=2", "", "=1,", "image=1 prompt=2"])
    def test_weights_of_modalities_that_are_none(self, refused, llava, rows, weights):
        line = refused("--model", llava, "--dataset", rows, "--importance=wanda", f"--modality-weights={weights}")
        assert line == f"--modality-weights '{weights}' is not understood: write image=0.5,prompt=1,answer=2."

    def test_weights_of_modalities_for_a_metric_that_mixes_them(self, refused, llava, rows):
        assert refused("--model", llava, "--dataset", rows, "--modality-weights", "image=0") == (
            "importance 'reconstruction' does not keep tokens apart by modality: leave modality_weights out, or use "
            "one of taylor_group, activation, wanda, fluctuation."
        )
        assert refused("--model", llava, "--dataset", rows, "--importance=wanda", "--modality-weights", "video=0") == (
            "modality_weights has 'video': it takes image, prompt, answer."
        )

    @pytest.mark.parametrize("importance", ["magnitude_l1", "magnitude_l2"])
    def test_a_seed_without_chance(self, refused, llava, importance):
        line = refused("--model", llava, "--importance", importance, "--seed", "7")
        assert line == f"importance '{importance}' looks at weights alone: leave --seed out."

    def test_a_revision_of_a_local_folder(self, refused, llava):
        line = refused("--model", llava, *BY_WEIGHTS, "--revision", "main")
        assert line == "--revision has no effect on a local folder: leave it out."

    def test_model_alone_without_a_network(self, refused, llava):
        assert refused("--model", llava) == (
            "no calibration data: the default set 'HuggingFaceH4/llava-instruct-mix-vsft' cannot be fetched; name "
            "your own with --dataset, or prune without data with --importance magnitude_l2."
        )


class TestRows:
    @pytest.fixture
    def written(self, cwd):
        Image.new("RGB", (32, 32)).save(cwd / "good.png")
        (cwd / "bad.png").write_bytes(b"no image")

        def write(*rows):
            (cwd / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
            return "rows.jsonl"

        return write

    @pytest.mark.parametrize(
        ("row", "line"),
        [
            ({"picture": "good.png", "caption": "Black."},
             "The dataset has no usable column (found: 'picture', 'caption'); rows need "
             '"messages" (with "images"), "image"+"question"+"answer", or "image"+"conversations".'),
            ({"image": "bad.png", "question": "What?", "answer": "Black."},
             "Row 0: 'bad.png' cannot be read as an image; mend the file or take the row out."),
            ({"image": "gone.png", "question": "What?", "answer": "Black."},
             "Row 0: image file 'gone.png' does not exist; image paths are relative to the dataset file."),
            ({"image": "good.png", "question": "What?", "answer": ""},
             "Row 0 has no assistant answer; add one or take the row out."),
            ({"images": ["good.png"], "messages": [{"role": "user", "content": "What?"}]},
             "Row 0 has no assistant answer; add one or take the row out."),
            ({"image": "good.png", "question": "<image> or <image>?", "answer": "Black."},
             "Row 0 has 2 image markers but 1 images; make them match."),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("words", [(), ("--method", "layer")], ids=["width", "layers"])
    def test_unfit(self, refused, llava, written, words, row, line):
        assert refused("--model", llava, *words, "--dataset", written(row)) == line

    def test_none(self, refused, llava, written):
        line = refused("--model", llava, "--dataset", written())
        assert line == "The dataset has no rows; choose another dataset or split."

    def test_a_content_entry_that_is_a_number(self, refused, llava, written):
        turns = [{"role": "user", "content": [3]}, {"role": "assistant", "content": "Black."}]
        line = refused("--model", llava, "--dataset", written({"messages": turns}))
        assert line == "Row 0 has content of type 'int'; only image and text can be used."

    def test_another_encoding(self, refused, llava, cwd):
        (cwd / "rows.jsonl").write_bytes('{"question": "Où?", "answer": "Là."}'.encode("latin-1"))
        line = refused("--model", llava, "--dataset", "rows.jsonl")
        assert line == "Dataset file 'rows.jsonl' is not UTF-8 text; save it as UTF-8."

    def test_a_saved_dataset_cut_short(self, refused, llava, rows, cwd):
        shutil.copytree(rows, cwd / "rows")
        file = next((cwd / "rows").glob("*.arrow"))
        file.write_bytes(file.read_bytes()[:1000])
        line = refused("--model", llava, "--dataset", "rows")
        assert line == "Dataset folder 'rows' is damaged or incomplete; write it again with save_to_disk."

    def test_no_such_split(self, refused, llava, cwd, written):
        file = written({"image": "good.png", "question": "What?", "answer": "Black."})
        line = refused("--model", llava, "--dataset", file, "--dataset-split", "nine")
        assert line == "The dataset has no split 'nine'; choose one of: 'train'."


class TestPlan:
    @pytest.fixture
    def plan(self, command, llava, cwd):
        assert command("--model", llava, "dry", *BY_WEIGHTS, "--dry-run").code == 0
        return json.loads((cwd / "dry" / "pruning_plan.json").read_text())

    @pytest.mark.parametrize("text", ["{oops", ""])
    def test_no_json(self, refused, llava, cwd, text):
        (cwd / "plan.json").write_text(text)
        assert refused("--model", llava, "--plan", "plan.json").startswith("the plan 'plan.json' is not JSON (")

    def test_binary(self, refused, llava, cwd):
        (cwd / "plan.json").write_bytes(b"\xff\xfe\x00")
        assert refused("--model", llava, "--plan", "plan.json").startswith("the plan 'plan.json' is not JSON (")

    @pytest.mark.parametrize("text", ["[]", "{}", '"plan"', '{"method": "layer"}'])
    def test_no_plan(self, refused, llava, cwd, text):
        (cwd / "plan.json").write_text(text)
        assert refused("--model", llava, "--plan", "plan.json") == (
            "the plan is not a pruning plan: give the pruning_plan.json that a run has written."
        )

    def test_not_there(self, refused, llava):
        line = refused("--model", llava, "--plan", "gone")
        assert line == "no plan at 'gone': give a pruning_plan.json or the folder that holds it."

    def test_damaged(self, refused, llava, plan, cwd):
        def told(**changes):
            (cwd / "plan.json").write_text(json.dumps(plan | changes))
            return refused("--model", llava, "--plan", "plan.json")

        channels = plan["removed_channels"]
        first = next(iter(channels))
        assert told(format=9) == "the plan has format 9, this version reads 1: write it again."
        assert told(colour=1) == "the plan has unknown keys ['colour'] and lacks []: write it again."
        assert told(removed_layers=[99]) == (
            "the plan's removed_layers must be ascending numbers from 0 to 7, and not all of them."
        )
        assert told(removed_channels={"tower": [1]}).startswith("the plan's removed_channels must name every block: ")
        assert told(removed_channels=channels | {first: channels[first][1:]}) == (
            "the plan's removed_channels differ in number between layers: a config cannot say that."
        )
        assert told(removed_channels=channels | {first: channels[first][::-1]}) == (
            f"the plan's removed_channels of {first} must be ascending numbers from 0 to 415, and not all of them."
        )
        assert told(config={"ratio": 7}).startswith("ratio must lie between 0 and 1")
        assert told(config={"speed": 7}).startswith("PruningConfig has no key 'speed'; it has: method, ratio, ")
        assert (
            told(removed_layers="abc") == "the plan's removed_layers must be a list of whole numbers: write it again."
        )
        assert told(removed_heads=[1]).startswith(
            "the plan's removed_heads must be an object of lists of whole numbers: "
        )
        assert told(notes=[1]) == "the plan's notes must be a list of texts: write it again."
        assert told(method=["width"]) == "the plan's method must be a text: write it again."
        assert told(ratio={"requested": "x"}) == "the plan's ratio must be an object of numbers: write it again."
        assert told(config={"dataset": 7}) == "dataset must be a text or null, got 7."
        missing = plan.pop("removed_heads")
        assert missing
        assert told() == "the plan has unknown keys [] and lacks ['removed_heads']: write it again."

    def test_of_another_model(self, refused, llava, plan, cwd):
        other = plan | {"model": plan["model"] | {"fingerprint": "0", "model_type": "qwen2_vl"}}
        (cwd / "plan.json").write_text(json.dumps(other))
        assert refused("--model", llava, "--plan", "plan.json") == (
            "the plan was made for another model (qwen2_vl, 2,660,672 parameters): plan again for this one."
        )

    @pytest.mark.parametrize(
        "flag",
        [
            "--ratio=0.2",
            "--num-layers=2",
            "--target-params=2M",
            "--importance=random",
            "--modality-weights=image=0",
            "--dry-run",
        ],
    )
    def test_says_all(self, refused, llava, plan, flag):
        name = flag.partition("=")[0]
        line = refused("--model", llava, "--plan", "dry", flag)
        assert line == f"--plan says all that is removed: leave {name} out."


class TestScores:
    def test_not_there(self, refused, llava):
        line = refused("--model", llava, "--scores", "gone")
        assert line == "no scores at 'gone': give a pruning_scores.safetensors or the folder that holds it."

    def test_damaged(self, refused, llava, cwd):
        (cwd / "scores.safetensors").write_bytes(b"words" * 50)
        line = refused("--model", llava, "--scores", "scores.safetensors")
        assert line.startswith("the scores in 'scores.safetensors' cannot be read (")
        assert line.endswith("): calibrate again.")

    def test_of_another_model(self, refused, llava, cwd):
        save_file({"layers": torch.zeros(8)}, cwd / "scores.safetensors", metadata={"model": "0"})
        line = refused("--model", llava, "--scores", "scores.safetensors")
        assert line == "the scores were made for another model: calibrate this one."

    def test_of_another_metric(self, refused, command, llava):
        assert command("--model", llava, "dry", *BY_WEIGHTS, "--dry-run").code == 0
        assert refused("--model", llava, "--scores", "dry", "--importance", "wanda") == (
            "the scores hold 'magnitude_l2' for method 'width', not 'wanda': name that importance or calibrate again."
        )

    def test_made_before_tokens_were_kept_apart(self, refused, command, llava, rows, cwd):
        words = ("--importance", "wanda", "--ratio=0.4")
        assert command("--model", llava, "dry", "--dataset", rows, "--num-samples=2", *words, "--dry-run").code == 0
        found = load_file(cwd / "dry" / SCORES_NAME)
        with safe_open(cwd / "dry" / SCORES_NAME, framework="pt") as stored:
            metadata = stored.metadata()
        metadata.pop("modality_weights")
        save_file({name: found[name] for name in ("layers", "heads", "channels")}, cwd / SCORES_NAME, metadata)
        assert command("--model", llava, "again", "--scores", SCORES_NAME, *words, "--dry-run").code == 0
        line = refused("--model", llava, "out", "--scores", SCORES_NAME, *words, "--modality-weights=image=0")
        assert line == "the scores were made before tokens were kept apart by modality: calibrate again."

    def test_of_another_head_unit(self, refused, command, llava):
        assert command("--model", llava, "dry", *BY_WEIGHTS, "--ratio=0.4", "--head-unit=query", "--dry-run").code == 0
        assert refused("--model", llava, "out", "--scores", "dry", *BY_WEIGHTS, "--ratio=0.4") == (
            "the scores are of 8 heads in each of 8 blocks, the plan is of 4 (key-value groups) in 8: take the head "
            "unit they were made with, or calibrate again."
        )

    def test_a_seed_is_of_the_calibration(self, refused, command, llava):
        words = ("--importance", "random")
        assert command("--model", llava, "dry", *words, "--dry-run").code == 0
        line = refused("--model", llava, "out", "--scores", "dry", *words, "--seed", "7")
        assert line == "--scores stands for an earlier calibration: leave --seed out."


class TestOutput:
    def test_exists(self, refused, llava, cwd):
        (cwd / "full").mkdir()
        (cwd / "full" / "thesis.txt").write_text("not to be lost")
        line = refused("--model", llava, "full", *BY_WEIGHTS)
        assert line == "'full' exists already: name another folder, or add --overwrite to replace it."

    def test_default_exists(self, refused, llava, cwd):
        (cwd / "tiny-llava-pruned").mkdir()
        (cwd / "tiny-llava-pruned" / "thesis.txt").write_text("not to be lost")
        line = refused("--model", llava, *BY_WEIGHTS)
        assert line == "'tiny-llava-pruned' exists already: name another folder, or add --overwrite to replace it."

    @pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
    def test_is_a_file(self, refused, llava, cwd, overwrite):
        (cwd / "thesis.txt").write_text("not to be lost")
        line = refused("--model", llava, "thesis.txt", *BY_WEIGHTS, *overwrite)
        assert line == "'thesis.txt' is a file: name a folder for the output."

    def test_below_a_file(self, refused, llava, cwd):
        (cwd / "thesis.txt").write_text("not to be lost")
        line = refused("--model", llava, "thesis.txt/chapter/out", *BY_WEIGHTS)
        assert line == "'thesis.txt/chapter/out' cannot be written: choose a folder that you may write to."

    def test_not_writable(self, refused, llava, monkeypatch):
        # Tests may run as root, who may write anywhere.
        monkeypatch.setattr("os.access", lambda *_: False)
        line = refused("--model", llava, "out", *BY_WEIGHTS)
        assert line == "'out' cannot be written: choose a folder that you may write to."

    def test_no_folder_can_be_made(self, refused, llava):
        line = refused("--model", llava, "/proc/self/out", *BY_WEIGHTS, "--dry-run")
        assert line.startswith("'/proc/self/out' cannot be written")

    def test_a_link_to_nothing(self, refused, llava, cwd):
        (cwd / "out").symlink_to(cwd / "gone")
        line = refused("--model", llava, "out", *BY_WEIGHTS)
        assert line == "'out' is a link to nothing: remove it or name another folder."

    @pytest.mark.parametrize("flag", ["--model", "--dataset", "--plan", "--scores"])
    def test_never_what_the_run_reads(self, refused, command, llava, rows, cwd, flag):
        (cwd / "work").mkdir()
        shutil.copytree(llava, cwd / "work" / "model")
        shutil.copytree(rows, cwd / "work" / "rows")
        assert command("--model", llava, "work/dry", *BY_WEIGHTS, "--dry-run").code == 0
        source = {"--model": "work/model", "--dataset": "work/rows"}.get(flag, "work/dry")
        words = {"--dataset": (), "--plan": ()}.get(flag, BY_WEIGHTS)
        words = (*words, flag, source, *(() if flag == "--model" else ("--model", llava)))
        for output in (source, "work"):
            line = refused(output, *words, "--overwrite")
            assert line == f"'{output}' holds '{source}', which this run reads: name another folder."

    def test_name_too_long(self, refused, llava):
        line = refused("--model", llava, "x" * 300, *BY_WEIGHTS)
        assert line == f"'{'x' * 300}' cannot be written (File name too long): choose another name."

    def test_current_folder(self, refused, llava, cwd):
        (cwd / "thesis.txt").write_text("not to be lost")
        line = refused("--model", llava, ".", *BY_WEIGHTS, "--overwrite")
        assert line == "'.' holds the folder you are in, which cannot be replaced: name another folder."
