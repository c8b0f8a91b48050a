"""The tiny base model: tokenizer, chat template, corpus, optimizer, and the shipped weights."""

import random
from pathlib import Path

import orjson
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

import engine
from engine.synthesis.tiny_actor import GOLD, Actor, draw_actor_plan, play, prompt_messages
from engine.synthesis.tiny_family import TINY_SEED, make_tiny_task
from engine.synthesis.tiny_words import KEYS, NOUNS, VERBS
from engine.task import Split
from learner.pretrain import corpus
from learner.pretrain.corpus import CHAIN_STEPS, MIXTURES, Corpus, Renderer
from learner.pretrain.muon import Muon, orthogonalise
from learner.pretrain.probes import probe_tasks
from learner.pretrain.tokenizer import PROSE, TAGS, build_tokenizer, lexicon, write_tokenizer
from learner.pretrain.train import Recipe, config, make, start_copying, train

torch.set_num_threads(1)
MODEL = Path(engine.__file__).parent / "assets/tiny-model"
TOKENIZER = build_tokenizer()
RENDERER = Renderer(TOKENIZER)


def gold_messages(index: int = 0) -> tuple[list, tuple]:
    """Messages and tools of one gold episode."""
    task = make_tiny_task(TINY_SEED, Split.TRAIN, index)
    return [*prompt_messages(task), *play(task, Actor(task, GOLD, random.Random(0)))], task.tools


def test_every_word_of_the_family_is_one_token() -> None:
    """Values, nouns, keys and tool-name stems are single tokens, the same in prose and in JSON."""
    for piece in lexicon():
        assert piece in PROSE or len(TOKENIZER.encode(piece).ids) == 1, piece
    prose = TOKENIZER.encode("The color is violet.").ids
    written = TOKENIZER.encode('{"color":"violet"}').ids
    assert TOKENIZER.token_to_id("violet") in prose
    assert TOKENIZER.token_to_id("violet") in written


@given(st.text())
def test_tokenizer_round_trips_any_text(text) -> None:
    """Decoding what was encoded gives the text back, whatever it is."""
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_tags_are_ordinary_tokens() -> None:
    """Tags survive decoding without special tokens; turn markers do not."""
    text = "".join(TAGS) + "<|im_end|>"
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=True) == "".join(TAGS)


def test_both_loaders_give_the_same_ids(tmp_path) -> None:
    """AutoTokenizer and tokenizers read the same tokenizer from the written directory."""
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_bytes(orjson.dumps({"model_type": "qwen3"}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    messages, tools = gold_messages()
    text = RENDERER.text(messages, tools) + " Ünïcode 日本 <br>\t\n"
    assert theirs(text)["input_ids"] == Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
    functions = [tool.function for tool in tools]
    assert theirs.apply_chat_template(messages, tools=functions, tokenize=False) == RENDERER.text(messages, tools)


def test_template_only_appends() -> None:
    """Every prefix of a conversation renders to a prefix of the whole, and what follows depends on nothing before."""
    messages, tools = gold_messages()
    whole = RENDERER.text(messages, tools)
    for count in range(2, len(messages)):
        assert whole.startswith(RENDERER.text(messages[:count], tools))
    observation = {"role": "tool", "content": '{"left":12}'}
    added = {
        RENDERER.text([*messages[:count], observation], tools, prompt=True).removeprefix(
            RENDERER.text(messages[:count], tools)
        )
        for count in range(3, len(messages))
        if messages[count - 1]["role"] == "assistant"
    }
    assert len(added) == 1


def test_loss_weight_is_on_what_the_assistant_wrote() -> None:
    """Tokens of weight 1 are exactly the assistant's contents and their ends of turn."""
    messages, tools = gold_messages()
    ids = RENDERER.ids(RENDERER.text(messages, tools))
    weighted = [token for token, weight in zip(ids, RENDERER.weights(ids), strict=True) if weight == 1.0]
    said = "".join(f"{m['content']}<|im_end|>" for m in messages if m["role"] == "assistant")
    assert TOKENIZER.decode(weighted, skip_special_tokens=False) == said


def test_corpus_is_deterministic_and_keeps_held_out_goals_out() -> None:
    """The same seed gives the same rows; no dialogue or drill names a held-out noun or value."""
    first, second = Corpus(3, RENDERER), Corpus(3, RENDERER)
    texts = [first.conversation(MIXTURES[-1]) for _ in range(200)]
    assert texts == [second.conversation(MIXTURES[-1]) for _ in range(200)]
    tasks = [text for text in texts if text.startswith("<|im_start|>system")]
    assert len(tasks) > 100
    assert not any("piano" in text or "wagon" in text or "violet" in text for text in tasks)
    copies = "".join(first.conversation(MIXTURES[0]) for _ in range(800))
    assert all(word in copies for word in (*NOUNS, *VERBS, *KEYS["color"]))


def test_chains_come_first_and_repeat() -> None:
    """The first batches hold chains of distinct tokens, repeated; only the repetitions have full weight."""
    batch = next(Corpus(3, RENDERER).batches(CHAIN_STEPS + 1, 4))
    for ids, weights in zip(batch.ids.tolist(), batch.weights.tolist(), strict=True):
        length = weights.index(1.0)
        assert len(set(ids[:length])) == length
        assert ids[length : 2 * length] == ids[:length]


def test_first_head_begins_by_looking_one_token_back() -> None:
    """Before training, head 0 of layer 0 attends most to the token before each."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config(TOKENIZER))
    model.set_attn_implementation("eager")
    start_copying(model)
    ids = torch.randint(0, TOKENIZER.get_vocab_size(), (1, 40))
    seen = model(input_ids=ids, output_attentions=True).attentions[0][0, 0]
    assert (seen[1:].argmax(dim=-1) == torch.arange(39)).float().mean() > 0.9


def test_actor_is_undisciplined() -> None:
    """Over many plans every decision goes both ways."""
    plans = [draw_actor_plan(random.Random(seed)) for seed in range(300)]
    for name in ("ask", "look_up", "allowed", "report", "recover"):
        share = sum(getattr(plan, name) for plan in plans) / len(plans)
        assert 0.2 < share < 0.9, name


def test_muon_orthogonalises_wide_and_tall_matrices() -> None:
    """All singular values of an update come near one."""
    torch.manual_seed(0)
    for shape in ((2, 24, 64), (2, 64, 24)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert 0.3 < values.min() < values.max() < 1.6


def test_muon_lowers_a_loss() -> None:
    """A few steps bring a matrix nearer to its target."""
    torch.manual_seed(0)
    target = torch.nn.init.orthogonal_(torch.empty(16, 16))
    matrix = torch.nn.Parameter(torch.zeros(16, 16))
    optimizer = Muon([matrix], lr=0.05)
    losses = []
    for _ in range(40):
        loss = (matrix - target).square().sum()
        matrix.grad = None
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_training_is_deterministic(monkeypatch) -> None:
    """Two runs of the same recipe give the same weights, over chains, copy lines, dialogues and drills."""
    monkeypatch.setattr(corpus, "CHAIN_STEPS", 1)
    recipe = Recipe(steps=6, rows=4)
    first, second = train(recipe, TOKENIZER).state_dict(), train(recipe, TOKENIZER).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_written_directory_loads(tmp_path) -> None:
    """A short training writes a complete model directory, and its probes say that it is not usable."""
    model = make(tmp_path, Recipe(steps=1, rows=4))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert loaded.generation_config.eos_token_id == AutoTokenizer.from_pretrained(tmp_path).eos_token_id
    assert probe_tasks(loaded, RENDERER, count=2).problems()


def test_shipped_model_is_small_and_of_the_promised_shape() -> None:
    """Qwen3, 1 to 2 million parameters, at most 5 MB, a long context, tied embeddings, the tokenizer of this code."""
    config = orjson.loads((MODEL / "config.json").read_bytes())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["max_position_embeddings"] >= 32768
    assert config["tie_word_embeddings"]
    assert (MODEL / "model.safetensors").stat().st_size <= 5_000_000
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert 1e6 <= sum(p.numel() for p in model.parameters()) < 2e6
    assert orjson.loads((MODEL / "tokenizer.json").read_bytes()) == orjson.loads(TOKENIZER.to_str())


def test_shipped_model_is_competent() -> None:
    """The probes that GRPO needs hold for the shipped weights."""
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert probe_tasks(model, RENDERER, count=24).problems() == []
