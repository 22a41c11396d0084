import logging

import pytest

from optimum_mllm_prune.quiet import quiet


@pytest.mark.parametrize("library", ["huggingface_hub.utils._http", "datasets.builder", "transformers.hub"])
def test_libraries_say_nothing_inside_and_speak_again_after(library):
    logger = logging.getLogger(library)
    before = logger.getEffectiveLevel()
    with pytest.raises(ValueError, match="surprise"), quiet():
        assert not logger.isEnabledFor(logging.CRITICAL)
        raise ValueError("surprise")
    assert logger.getEffectiveLevel() == before


def test_our_own_lines_stay():
    with quiet():
        assert logging.getLogger("optimum.mllm_prune.loading").isEnabledFor(logging.ERROR)
