"""`mllm-prune`: sizes in bytes, the decision guide, and the search, in this process."""

import json

import pytest

from optimum_mllm_prune.planning import PruningPlan


BY_WEIGHTS = ("--importance", "magnitude_l2")
METRIC = {"auto": BY_WEIGHTS, "width": BY_WEIGHTS, "layer": ("--importance", "magnitude")}


def weights(done):
    """Parameters after pruning, as told on the screen."""
    line = next(line for line in done.out.splitlines() if line.startswith("parameters"))
    return int(line.split()[2].replace(",", ""))


class TestBytes:
    @pytest.mark.parametrize("method", ["auto", "width", "layer"])
    @pytest.mark.parametrize(("dtype", "bytes_each"), [("float32", 4), ("bfloat16", 2)])
    def test_target_size(self, command, llava, method, dtype, bytes_each):
        size = 2_100_000 * bytes_each
        done = command("--model", llava, "--dry-run", "--target-size", f"{size}", "--method", method,
                       *(() if dtype == "float32" else ("--dtype", dtype, "out", *METRIC[method])))  # fmt: skip
        assert done.code == 0, done.err
        assert weights(done) * bytes_each <= size
        # No more goes than must: the next step is a layer, or a few channels in each.
        assert weights(done) > (1_650_000 if method == "layer" else 2_000_000)

    def test_fits(self, command, llava):
        words = ("--model", llava, "--dry-run", "--fits", "12MB", "--context", "128", "--images", "1")
        done = command(*words)
        assert done.code == 0, done.err
        assert "backbone removed" in done.out

    def test_more_context_takes_more(self, command, llava):
        words = ("--model", llava, "--dry-run", "--fits", "11MB", "--context")
        short, long = (weights(command(*words, context, "--batch", "2")) for context in ("64", "256"))
        assert long < short

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (("--target-size", "6G"),
             "'6G' is not a size: write 6GB (a GB is 10^9 bytes), 6GiB (a GiB is 2^30) or a number of bytes."),
            (("--target-size", "1GB"),
             "the weights take 10.64 MB and 1.00 GB are allowed: there is nothing to prune, give a smaller size."),
            (("--target-size", "6MB", "--ratio", "0.3"),
             "--ratio and --target-size both say how much to remove: give one of them."),
            (("--fits", "6MB", "--target-size", "6MB"),
             "--target-size and --fits both say how much to remove: give one of them."),
            (("--context", "64"), "--context is only used with --fits: add it, or leave --context out."),
            (("--fits", "12MB", "--batch", "0"), "batch must be a whole number of at least 1, got 0."),
        ],
        ids=lambda value: " ".join(value)[:30],
    )  # fmt: skip
    def test_wrong_input(self, refused, llava, words, line):
        assert refused("--model", llava, "--dry-run", *words) == line

    def test_out_of_reach(self, refused, llava):
        line = refused("--model", llava, "--dry-run", "--target-size", "100kB")
        assert line.startswith("0.10 MB are out of reach by method 'width': at ratio ")


class TestGuide:
    @pytest.mark.parametrize(
        ("words", "method", "said"),
        [
            ((), "width", "Without training, width kept 90.9-94.7 % at 15 %"),
            (("--ratio", "0.3"), "width", "Beware: Beyond 15 % train afterwards"),
            (("--ratio", "0.3", "--method", "layer"), "layer", None),
        ],
        ids=["default", "ratio", "method named"],
    )
    def test_it_says_why(self, command, llava, words, method, said):
        done = command("--model", llava, "--dry-run", *words)
        assert done.code == 0, done.err
        assert (f"The guide: method '{method}'" in done.out) == (said is not None)
        assert said is None or said in done.out
        assert "backbone removed" in done.out

    @pytest.mark.usefixtures("unverified")
    @pytest.mark.parametrize(("ratio", "method"), [("0.15", "layer"), ("0.3", "layer"), ("0.45", "width")])
    def test_the_budget_of_a_recovery_decides_the_method(self, command, llava, rows, cwd, monkeypatch, ratio, method):
        monkeypatch.setattr("optimum_mllm_prune.commands.prune_recover.recover_staged", lambda *_: None)
        words = ("--model", llava, "out", "--ratio", ratio, "--dataset", rows, "--recover", "lora", "--device", "cpu")
        done = command(*words)
        assert done.code == 0, done.err
        assert f"The guide: method '{method}'" in done.out
        assert PruningPlan.load(cwd / "out.pruned").method == method
        assert ("training 'projector' would do; 'lora' was asked for" in done.out) == (ratio == "0.15")

    def test_what_only_width_can_do_settles_it(self, command, llava):
        done = command("--model", llava, "--dry-run", "--head-share", "0")
        assert done.code == 0, done.err
        assert "The guide" not in done.out


class TestMixed:
    def test_layers_and_width(self, command, llava, cwd):
        words = ("--model", llava, "out", "--dry-run", "--method", "mixed", "--ratio", "0.4", "--layer-share", "0.5")
        done = command(*words, *BY_WEIGHTS)
        assert done.code == 0, done.err
        plan = PruningPlan.load(cwd / "out")
        assert len(plan.removed_layers) == 2
        assert plan.removed_channels and plan.removed_heads
        assert abs(plan.ratio["achieved"] - 0.4) < 0.02

    @pytest.mark.usefixtures("unverified")
    def test_it_is_pruned_and_saved(self, command, llava, cwd):
        words = ("--model", llava, "out", "--method", "mixed", "--ratio", "0.4", *BY_WEIGHTS)
        assert command(*words).code == 0
        config = json.loads((cwd / "out" / "config.json").read_text())["text_config"]
        assert config["num_hidden_layers"] == 6
        assert config["intermediate_size"] < 416
        assert "mixed-pruning" in (cwd / "out" / "README.md").read_text()

    @pytest.mark.parametrize("method", ["layer", "width"])
    def test_the_share_of_layers_is_of_mixtures(self, refused, llava, method):
        assert refused("--model", llava, "--dry-run", "--method", method, "--layer-share", "0.3") == (
            f"--layer-share has no effect with method '{method}': leave it out."
        )


class TestSearch:
    def test_plan_figures_and_picture(self, command, llava, rows, cwd):
        words = ("--model", llava, "out", "--dry-run", "--search", "--ratio", "0.4", "--dataset", rows)
        done = command(*words, "--num-samples", "2", "--search-rows", "4", "--device", "cpu")
        assert done.code == 0, done.err
        told = json.loads((cwd / "out" / "pruning_search.json").read_text())
        assert told["rows"] == 4
        assert f"Taken: {told['tried'][0]['name']}." in done.out
        assert (cwd / "out" / "pruning_search.png").is_file()
        assert PruningPlan.load(cwd / "out").parameters == told["tried"][0]["parameters"]

    @pytest.mark.slow
    def test_by_weights_rows_are_for_scoring_alone(self, command, llava, rows, cwd):
        words = ("--model", llava, "out", "--dry-run", "--search", "--target-size", "9MB", "--dataset", rows)
        done = command(*words, *BY_WEIGHTS, "--search-rows", "3", "--device", "cpu")
        assert done.code == 0, done.err
        assert weights(done) * 4 <= 9e6

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (("--search",), "--search scores plans on rows: name them with --dataset."),
            (("--search", "--dataset", "d", "--method", "layer"),
             "--search tries all methods after a calibration of its own: leave --method out."),
            (("--search", "--dataset", "d", "--scores", "s"),
             "--search tries all methods after a calibration of its own: leave --scores out."),
            (("--search", "--dataset", "d", "--search-rows", "0"), "--search-rows must be at least 1, got 0."),
            (("--search-rows", "3"), "--search-rows is only used with --search: add it, or leave --search-rows out."),
        ],
        ids=lambda value: " ".join(value)[:30],
    )  # fmt: skip
    def test_wrong_input(self, refused, llava, words, line):
        assert refused("--model", llava, *words) == line

    def test_too_few_rows(self, refused, llava, rows):
        assert refused("--model", llava, "--search", "--dataset", rows, "--num-samples", "12") == (
            f"--search needs more rows than the 12 to calibrate on, and '{rows}' has 12: name a larger data set, or "
            "lower --num-samples."
        )
