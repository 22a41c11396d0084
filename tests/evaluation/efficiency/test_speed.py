import time
from types import SimpleNamespace

import pytest
import torch
from checkpoint import tiny_llava

from optimum_mllm_prune.evaluation.efficiency.cache_size import CacheSize
from optimum_mllm_prune.evaluation.efficiency.comparison import compare
from optimum_mllm_prune.evaluation.efficiency.cost import Cost
from optimum_mllm_prune.evaluation.efficiency.inputs import prompt_inputs
from optimum_mllm_prune.evaluation.efficiency.speed import (
    Runner,
    Speed,
    Timing,
    measure_speeds,
    time_run,
    unless_out_of_memory,
)


class Sleeper:
    """Generates by sleeping: so long before the first token, so long before every other one."""

    device = torch.device("cpu")
    config = SimpleNamespace(to_dict=dict)

    def __init__(self, first=0.0, step=0.0, log=None, name=""):
        self.first, self.step, self.log, self.name = first, step, [] if log is None else log, name

    def generate(self, input_ids, max_new_tokens, streamer, **_):
        self.log.append(self.name)
        streamer.put(input_ids)
        for token in range(max_new_tokens):
            time.sleep(self.step if token else self.first)
            streamer.put(torch.zeros(len(input_ids), dtype=torch.long))
        streamer.end()


def runner(model):
    return Runner(model, lambda rows: {"input_ids": torch.zeros(rows, 3, dtype=torch.long)})


def test_a_model_that_sleeps():
    speeds = measure_speeds({"it": runner(Sleeper(first=0.06, step=0.02))}, [1, 4], 5, 3)["it"]
    for rows, speed in speeds.items():
        assert 0.06 <= speed.first_token_seconds.low < 0.2
        assert 0.3 * rows / 0.02 < speed.decode_tokens_per_second.median <= rows / 0.02
        # Asleep, it takes no CPU time.
        assert speed.first_token_cpu_seconds.median < 0.03
        assert speed.decode_tokens_per_cpu_second.median > 1.5 * speed.decode_tokens_per_second.median


def test_models_take_turns_and_the_first_to_come_changes():
    log = []
    runners = {name: runner(Sleeper(log=log, name=name, step=1e-4)) for name in "abc"}
    measure_speeds(runners, [1, 2], 2, 3)
    assert "".join(log) == "abccbaabccba" * 2


def test_the_first_run_does_not_count():
    model = Sleeper(first=0.2, step=1e-4)
    inner = model.generate

    def warming_up(**options):
        inner(**options)
        model.first = 0.0

    model.generate = warming_up
    assert measure_speeds({"it": runner(model)}, [1], 2, 3)["it"][1].first_token_seconds.high < 0.2


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory")]
)
def test_what_does_not_fit_is_left_out_and_the_rest_is_kept(error):
    small, large = Sleeper(step=1e-4), Sleeper(step=1e-4)
    inner = large.generate

    def hungry(input_ids, **options):
        if len(input_ids) == 8:
            raise error
        inner(input_ids=input_ids, **options)

    large.generate = hungry
    found = measure_speeds({"large": runner(large), "small": runner(small)}, [1, 8], 2, 2)
    assert found["large"][8] is None
    assert all(isinstance(speed, Speed) for speed in (found["large"][1], found["small"][1], found["small"][8]))


def test_other_errors_are_raised():
    def fail():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        unless_out_of_memory(fail)


def test_a_real_model_makes_exactly_so_many_tokens():
    model, processor = tiny_llava.model(), tiny_llava.processor()
    wall, cpu = time_run(Runner(model, lambda rows: prompt_inputs(model, processor, 40, rows)), 2, 6)
    assert len(wall) == len(cpu) == 1 + 6
    assert wall == sorted(wall) and cpu == sorted(cpu)
    assert wall[-1] > wall[0]


def test_median_and_range():
    assert Timing.of([3.0, 1.0, 10.0]) == Timing(3.0, 1.0, 10.0)


def speed(first, rate):
    """CPU time is half of the time."""
    one = (first, rate, first / 2, rate * 2)
    return Speed(*(Timing(value, value, value) for value in one))


class TestComparison:
    before = Cost(10, 10, 300, 1000, CacheSize(10, {}, 0))
    after = Cost(10, 10, 200, 500, CacheSize(5, {}, 0))

    def test_by_hand(self):
        found = compare((self.before, self.after), (speed(6.0, 10.0), speed(5.0, 18.0)), 2, 3)
        assert (found.prefill.measured, found.prefill.ideal) == (1.2, 1.5)
        assert found.prefill.share == pytest.approx(0.8)
        # Mean context 11.5: 1000 + 2 * 115 and 500 + 2 * 57.5 bytes.
        assert found.decode.measured == 1.8
        assert found.decode.ideal == pytest.approx(1230 / 615)
        assert found.decode.share == pytest.approx(0.9)
        assert found.decode.measured_cpu == pytest.approx(1.8)

    def test_an_ideal_that_is_not_known(self):
        unknown = Cost(10, 10, 200, None, CacheSize(5, {}, 0))
        found = compare((self.before, unknown), (speed(6.0, 10.0), speed(5.0, 18.0)), 2, 3)
        assert found.decode.ideal is None and found.decode.share is None
        assert found.prefill.share is not None

    @pytest.mark.parametrize("speeds", [(None, speed(1.0, 1.0)), (speed(1.0, 1.0), None)])
    def test_one_was_not_timed(self, speeds):
        assert compare((self.before, self.after), speeds, 2, 3) is None
