"""Reading a cache: what it gives, what it refuses, and what it is a cache of."""

from __future__ import annotations

import shutil

import pytest
import torch
from checkpoint import tiny_llava
from recovery import teacher_cache
from transformers import AutoConfig

from optimum_mllm_prune import UserInputError
from optimum_mllm_prune.recovery.batching import RowCollator
from optimum_mllm_prune.recovery.teachers import cached as cached_teacher
from optimum_mllm_prune.recovery.teachers.cached import CachedTeacher
from optimum_mllm_prune.recovery.tokens import positions


def message(call, *args, **others):
    with pytest.raises(UserInputError) as caught:
        call(*args, **others)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def guided(teacher, numbers, rows=None, recipe=None):
    own = rows or teacher_cache.rows()
    batch = RowCollator(teacher_cache.processor())([(number, own[number]) for number in numbers])
    _, modality, places = (batch.pop(name) for name in ("labels", "modality", "row_number"))
    return teacher.guide(batch, modality, places, recipe or teacher_cache.recipe()), batch, modality, places


class TestGuidance:
    @pytest.mark.parametrize("numbers", [[0, 2], [8, 3, 4], [5, 1], [6]])
    def test_is_that_of_the_live_teacher_in_the_order_of_the_batch(self, whole, numbers):
        stored, inputs, modality, places = guided(CachedTeacher(whole), numbers)
        live = teacher_cache.teacher().guide(inputs, modality, places, teacher_cache.recipe())
        assert torch.allclose(stored.final(), live.final(), atol=1e-5)
        student = torch.randn(int(positions(modality, "answer").sum()), teacher_cache.VOCABULARY)
        for chunk in (slice(0, 3), slice(3, len(student))):
            of = [g.divergence(chunk, teacher_cache.recipe()) for g in (stored, live)]
            for block in (slice(0, 2), slice(2, len(student))):
                own, theirs = (divergence(student[chunk][block], block).item() for divergence in of)
                assert own == pytest.approx(theirs, rel=1e-5)

    @pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
    def test_has_the_gradients_of_the_live_teacher(self, whole, kind):
        recipe = teacher_cache.recipe("kd", divergence=kind, beta=0.3)
        stored, inputs, modality, places = guided(CachedTeacher(whole), [0, 4], recipe=recipe)
        live = teacher_cache.teacher().guide(inputs, modality, places, recipe)
        logits = torch.randn(int(positions(modality, "answer").sum()), teacher_cache.VOCABULARY, requires_grad=True)
        every = slice(0, len(logits))
        own, theirs = (torch.autograd.grad(g.divergence(every, recipe)(logits, every), logits) for g in (stored, live))
        assert theirs[0].abs().max() > 1e-3
        assert torch.allclose(own[0], theirs[0], atol=1e-6)

    def test_reads_no_more_than_the_loss_asks(self, whole):
        assert guided(CachedTeacher(whole), [0], recipe=teacher_cache.recipe("kd"))[0].final_states is None
        assert not guided(CachedTeacher(whole), [0], recipe=teacher_cache.recipe("hidden"))[0].log_probs.numel()

    def test_holds_few_shards_open(self, whole, monkeypatch):
        monkeypatch.setattr(cached_teacher, "_OPEN_SHARDS", 1)
        hashed = []
        real = cached_teacher.shard_of
        monkeypatch.setattr(cached_teacher, "shard_of", lambda path: hashed.append(path.name) or real(path))
        teacher = CachedTeacher(whole)
        for numbers in ([0, 2], [8], [3], [9]):
            guided(teacher, numbers)
        assert teacher._shard.cache_info().currsize == 1
        assert hashed == ["shard-00000.safetensors", "shard-00002.safetensors"]


class TestRequire:
    def refused(self, folder, loss, vocabulary=teacher_cache.VOCABULARY, **others):
        return message(CachedTeacher(folder).require, teacher_cache.recipe(loss, **others), vocabulary)

    def test_serves_what_it_was_written_for(self, whole):
        for loss in ("kd", "hidden", "sft+hidden", "sft+kd", "sft+hidden+kd"):
            CachedTeacher(whole).require(teacher_cache.recipe(loss), teacher_cache.VOCABULARY)

    def test_what_no_cache_holds(self, whole):
        assert self.refused(whole, "layers=1") == (
            "a cache holds no intermediate layers: leave out the loss term 'layers', or the cache."
        )
        assert self.refused(whole, "kd", logits_tokens="text") == (
            "a cache holds answer tokens alone: set logits_tokens to 'answer', not 'text'."
        )
        for tokens in ("text", "all"):
            assert self.refused(whole, "hidden", hidden_tokens=tokens) == (
                f"a cache holds answer tokens alone: set hidden_tokens to 'answer', not '{tokens}'."
            )
        CachedTeacher(whole).require(teacher_cache.recipe("hidden", logits_tokens="text"), 384)

    def test_what_this_one_does_not_hold(self, tmp_path):
        folder = tmp_path / "cache"
        teacher_cache.write(folder, loss="kd", top_k=4)
        assert self.refused(folder, "sft+hidden") == (
            f"the cache '{folder}' holds no hidden states: write one for this loss, or leave out 'hidden'."
        )
        assert self.refused(folder, "kd", temperature=1.5) == (
            f"the cache '{folder}' was written at temperature 2, not 1.5: set temperature to 2, or write it anew."
        )
        shutil.rmtree(folder)
        teacher_cache.write(folder, loss="hidden")
        assert self.refused(folder, "sft+kd") == (
            f"the cache '{folder}' holds no logits: write one for this loss, or leave out 'logits'."
        )

    def test_another_vocabulary(self, whole):
        assert self.refused(whole, "kd", vocabulary=1000) == (
            "the cached teacher's vocabulary has 384 tokens and the student's 1,000: logits cannot be compared; give "
            "the model that the student was pruned from."
        )
        CachedTeacher(whole).require(teacher_cache.recipe("hidden"), 1000)

    def test_all_logits_serve_any_temperature(self, whole):
        recipe = teacher_cache.recipe("kd", temperature=0.7)
        CachedTeacher(whole).require(recipe, teacher_cache.VOCABULARY)
        stored, inputs, modality, places = guided(CachedTeacher(whole), [3, 2], recipe=recipe)
        live = teacher_cache.teacher().guide(inputs, modality, places, recipe)
        student = torch.randn(int(positions(modality, "answer").sum()), teacher_cache.VOCABULARY)
        every = slice(0, len(student))
        own, theirs = (g.divergence(every, recipe)(student, every).item() for g in (stored, live))
        assert own == pytest.approx(theirs, rel=1e-5)


class TestDamage:
    def test_no_cache(self, tmp_path):
        told = f"'{tmp_path}' holds no teacher cache: write one first, or name its folder."
        assert message(CachedTeacher, tmp_path) == told

    def test_not_complete(self, cache):
        index = cached_teacher.CacheIndex.load(cache)
        index.with_shards({}).save(cache)
        assert message(CachedTeacher, cache) == (
            f"the cache '{cache}' is not complete: write it again, and it goes on."
        )

    def test_a_missing_shard(self, cache):
        (cache / "shard-00001.safetensors").unlink()
        assert message(CachedTeacher, cache) == (
            f"shard-00001.safetensors of the cache '{cache}' is missing: write the cache again, which adds it."
        )

    def test_a_shortened_shard(self, cache):
        shard = cache / "shard-00001.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1])
        assert message(CachedTeacher, cache) == (
            f"shard-00001.safetensors of the cache '{cache}' is damaged: delete it and run again."
        )

    @pytest.mark.parametrize("place", [0, 300, -1])
    def test_one_wrong_byte(self, cache, place):
        shard = cache / "shard-00001.safetensors"
        content = bytearray(shard.read_bytes())
        content[place] ^= 1
        shard.write_bytes(content)
        teacher = CachedTeacher(cache)
        guided(teacher, [0, 2])
        told = f"shard-00001.safetensors of the cache '{cache}' is damaged: delete it and run again."
        assert message(guided, teacher, [6, 7]) == told
        assert message(guided, teacher, [4]) == told
        shard.unlink()
        teacher_cache.write(cache)
        guided(CachedTeacher(cache), [6, 7])

    def test_a_shard_that_vanishes(self, cache):
        teacher = CachedTeacher(cache)
        (cache / "shard-00001.safetensors").unlink()
        assert message(guided, teacher, [5]) == (
            f"shard-00001.safetensors of the cache '{cache}' is damaged: delete it and run again."
        )

    def test_answers_of_another_length(self, whole):
        rows = teacher_cache.rows(answers=("one two three four five six",))
        told = message(guided, CachedTeacher(whole), [2, 0], rows)
        _, _, modality, _ = guided(CachedTeacher(whole), [0])
        here = int(positions(RowCollator(teacher_cache.processor())([(0, rows[0])])["modality"], "answer").sum())
        there = int(positions(modality, "answer").sum())
        assert here != there
        assert told == (
            f"row 0 has {here} answer tokens, and others ({there}) in the cache '{whole}': the rows, the chat "
            "template or the tokenizer have changed; write the cache anew."
        )

    def test_another_answer_of_the_same_length(self, whole):
        processor, rows = teacher_cache.processor(), teacher_cache.rows()
        batch = RowCollator(processor)([(1, rows[1]), (5, rows[5])])
        _, modality, places = (batch.pop(name) for name in ("labels", "modality", "row_number"))
        batch["input_ids"][1, (modality[1] == 3).nonzero()[0]] += 1
        told = message(CachedTeacher(whole).guide, batch, modality, places, teacher_cache.recipe())
        count = int((modality[1] == 3).sum())
        assert told == (
            f"row 5 has {count} answer tokens, and others ({count}) in the cache '{whole}': the rows, the chat "
            "template or the tokenizer have changed; write the cache anew."
        )

    def test_more_rows_than_are_stored(self, whole):
        rows, collate = teacher_cache.rows(), RowCollator(teacher_cache.processor())
        batch = collate([(10, rows[0])])
        _, modality, places = (batch.pop(name) for name in ("labels", "modality", "row_number"))
        assert message(CachedTeacher(whole).guide, batch, modality, places, teacher_cache.recipe()) == (
            f"row 10 is not in the cache '{whole}' of 10 rows: train on those that it is of."
        )


class TestCheck:
    def refused(self, folder, **given):
        return message(CachedTeacher(folder).check, **given)

    def told(self, folder, what):
        return f"the cache '{folder}' is {what}: name the right one, or write it anew."

    def test_the_same_things(self, whole, tmp_path):
        model, processor = tiny_llava.model(), teacher_cache.processor()
        CachedTeacher(whole).check()
        CachedTeacher(whole).check(teacher_cache.rows(), processor, model)
        tiny_llava.save_model(tmp_path)
        CachedTeacher(whole).check(
            processor=type(processor).from_pretrained(tmp_path), teacher=AutoConfig.from_pretrained(tmp_path)
        )
        CachedTeacher(whole).check(teacher=type(model).from_pretrained(tmp_path))

    def test_other_rows(self, whole):
        rows = teacher_cache.rows()
        assert self.refused(whole, rows=rows.take(range(9))) == (
            f"the cache '{whole}' is of 10 rows and the training has 9: draw the same ones (dataset, fraction, "
            "max_samples, seed), or write it anew."
        )
        told = self.told(whole, "of other rows, or of the same in another order")
        assert self.refused(whole, rows=rows.take([1, 0, *range(2, 10)])) == told
        assert self.refused(whole, rows=teacher_cache.rows(answers=("another",))) == told

    def test_another_teacher(self, whole):
        model = tiny_llava.model()
        with torch.no_grad():
            model.get_decoder().layers[3].mlp.down_proj.weight *= 1.01
        assert self.refused(whole, teacher=model) == self.told(whole, "of a teacher with other weights")
        model.config.text_config.num_hidden_layers = 7
        for given in (model, model.config):
            assert self.refused(whole, teacher=given) == self.told(whole, "of another teacher")

    def test_another_processor(self, whole):
        told = self.told(whole, "made with another processor or chat template")
        processor = teacher_cache.processor()
        processor.chat_template += " "
        assert self.refused(whole, processor=processor) == told
        processor = teacher_cache.processor()
        processor.image_processor.image_mean = [0.4, 0.5, 0.5]
        assert self.refused(whole, processor=processor) == told
