"""Ids and loss masks of conversations against transformers: compare_conversations.py DRIVER.

For the markup of several model families: a tokenizer is trained, conversations in English and Chinese are prepared with
the driver, and the shards, read with h5py, are compared with apply_chat_template(tokenize=True,
return_assistant_tokens_mask=True). Each family has its template as it is published and one with {% generation %} put in
by hand: both must give the masks that transformers gives for the second.
"""
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

import h5py
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BEGIN, END = "{% generation %}", "{% endgeneration %}"

# [[...]] is what the hand-made template marks.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{'<|im_start|>assistant\n'}}[[{{message['content'] + '<|im_end|>'}}]]{{'\n'}}"
    "{% else %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% if message['role'] == 'assistant' %}[[{{ message['content'] | trim + '<|eot_id|>' }}]]"
    "{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}[[{{ ' '  + content.strip() + ' ' + eos_token }}]]{% endif %}{% endfor %}")
QWEN25 = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        [[{%- if message.content %}
            {{- message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}]]
        {{- '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# Qwen3: the reasoning of earlier turns is left out, so what is before a turn is not always how the text begins.
QWEN3 = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
            {%- set reasoning_content = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        [[{%- if loop.index0 > ns.last_query_index %}
            {{- '<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {{- '<|im_end|>' }}]]
        {{- '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# Without thinking the prompt holds the empty block of reasoning, so an answer begins behind it.
QWEN3_BRIEF = QWEN3[:QWEN3.index("        [[")] + """        {%- if loop.index0 > ns.last_query_index and reasoning_content %}
            {{- '<think>\\n' }}
            [[{{- reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') + '<|im_end|>' }}]]
        {%- elif loop.index0 > ns.last_query_index %}
            {{- '<think>\\n\\n</think>\\n\\n' }}
            [[{{- content.lstrip('\\n') + '<|im_end|>' }}]]
        {%- else %}
            [[{{- content + '<|im_end|>' }}]]
        {%- endif %}
""" + QWEN3[QWEN3.index("        {{- '\\n' }}\n    {%- endif %}\n{%- endfor"):]

Family = collections.namedtuple("Family", "template kind special bos eos variables tools", defaults=((), False))
FAMILIES = {
    "smollm2": Family(CHATML, "bytes", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_start|>", "<|im_end|>"),
    "llama3": Family(LLAMA3, "bytes", ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                                       "<|eot_id|>"], "<|begin_of_text|>", "<|end_of_text|>"),
    "llama2": Family(LLAMA2, "pieces", ["<unk>", "<s>", "</s>"], "<s>", "</s>"),
    "qwen25": Family(QWEN25, "bytes-nfc", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>", (), True),
    "qwen3": Family(QWEN3, "bytes-nfc", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>"),
    "qwen3-brief": Family(QWEN3_BRIEF, "bytes-nfc", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>",
                          (("enable_thinking", False),)),
}

ENGLISH = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Write a haiku about rivers.", "Cold water running,\nstones remember every rain,\nthe sea waits below.\n"),
    ("  Sort these numbers: 3, 1, 2  ", "1, 2, 3"),
    ("Explain recursion to a child", "Imagine two mirrors that face each other...\n\n1. You look in.\n2. You see yourself looking in.\n"),
    ("Say nothing.", ""),
    ("Which sign is this: \U0001f680?", "A rocket \U0001f680"),
    ("Is 17 prime?", "<think>\n17 has no divisor from 2 to 4.\n</think>\n\nYes, 17 is prime."),
    ("How do you spell cafe with an accent?", "cafe\u0301, or caf\u00e9 in one character"),
    ("Quote the answer", "Q: what? A: Quite so, q"),
]
CHINESE = [
    ("\u6cd5\u56fd\u7684\u9996\u90fd\u662f\u54ea\u91cc\uff1f", "\u6cd5\u56fd\u7684\u9996\u90fd\u662f\u5df4\u9ece\u3002"),
    ("\u8bf7\u5199\u4e00\u9996\u5173\u4e8e\u6708\u4eae\u7684\u8bd7", "\u5e8a\u524d\u660e\u6708\u5149\uff0c\n\u7591\u662f\u5730\u4e0a\u971c\u3002"),
    ("\u89e3\u91ca\u4e00\u4e0b\u4ec0\u4e48\u662f\u91cf\u5b50\u529b\u5b66", "\u91cf\u5b50\u529b\u5b66\u662f\u7814\u7a76\u5fae\u89c2\u7c92\u5b50\u7684\u7406\u8bba\uff1a\n\n1. \u6ce2\u7c92\u4e8c\u8c61\u6027\n2. \u4e0d\u786e\u5b9a\u6027\u539f\u7406 "),
    ("1 + 1 = ?", "<think>\n\u8fd9\u5f88\u7b80\u5355\n</think>\n\n\u7b49\u4e8e 2\u3002"),
]
TOOL_TURNS = [
    {"role": "user", "content": "Weather in Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {
        "name": "weather", "arguments": {"city": "Oslo", "days": [1, 2], "exact": True, "note": "\u96ea"}}}]},
    {"role": "tool", "content": "snow"},
    {"role": "assistant", "content": "It snows."},
]


def make_conversations(tools):
    pairs = ENGLISH + CHINESE
    conversations = []
    for first in range(len(pairs)):
        for turns in (1, 2, 3):
            messages = [] if (first + turns) % 3 else [{"role": "system", "content": f"You are assistant number {first}."}]
            for i in range(turns):
                question, answer = pairs[(first * 5 + i * 3 + turns) % len(pairs)]
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            conversations.append(messages)
    if tools:
        conversations += [TOOL_TURNS, conversations[3] + TOOL_TURNS]
    return conversations


def make_tokenizer(folder, family, template):
    texts = [text for pair in ENGLISH + CHINESE for text in pair] * 3
    tokenizer = Tokenizer(models.BPE(byte_fallback=family.kind == "pieces", unk_token="<unk>" if family.kind == "pieces" else None))
    alphabet = []
    if family.kind == "pieces":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        if family.kind == "bytes-nfc":
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = list(family.special) + ([f"<0x{i:02X}>" for i in range(256)] if family.kind == "pieces" else [])
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=800, special_tokens=tokens, initial_alphabet=alphabet))
    if family.kind == "pieces":  # bytes are pieces of the model, not added tokens
        spec = json.loads(tokenizer.to_str())
        spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in family.special]
        tokenizer = Tokenizer.from_str(json.dumps(spec))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=family.bos, eos_token=family.eos)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": family.bos, "eos_token": family.eos, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return fast


def plain(template):
    # What stands around a mark is trimmed by the dash of the tag behind it, and so is the mark.
    return template.replace("[[", "").replace("]]", "")


def marked(template):
    if "{%-" in template:
        return template.replace("[[", "{%- generation %}").replace("]]", "{%- endgeneration %}")
    return template.replace("[[", BEGIN).replace("]]", END)


def read_documents(folder, pad=None):
    """All documents as (ids, mask), padding taken off; and the bins."""
    manifest = json.loads((folder / "dataset.json").read_text())
    documents, bins, n = [], [], manifest["pack_length"]
    for info in manifest["shards"]:
        with h5py.File(folder / info["file"], "r") as file:
            assert set(file) == {"tokens", "documents", "block_digest", "loss_mask"}, set(file)
            tokens, mask, offset = file["tokens"][:], file["loss_mask"][:], file["documents/offset"][:].tolist()
            assert file["loss_mask"].dtype == np.uint8 and mask.size == tokens.size == offset[-1]
            assert info["num_trained_tokens"] == int(mask.sum())
        if n:
            assert (tokens.size - 1) % n == 0 and set(range(0, tokens.size - 1, n)) <= set(offset)
            bins += [(tokens[a:a + n], mask[a:a + n]) for a in range(0, tokens.size - 1, n)]
        documents += [(tokens[a:b].tolist(), mask[a:b].tolist()) for a, b in zip(offset, offset[1:])]
    return documents, bins, manifest


def prepare(driver, **options):
    arguments = [f"{key}={v}" for key, value in options.items() for v in (value if isinstance(value, list) else [value])]
    run = subprocess.run([driver, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout)


def want_of(fast, conversations, template, train, variables):
    out = []
    for messages in conversations:
        encoded = fast.apply_chat_template(messages, chat_template=template, tokenize=True, return_dict=True,
                                           return_assistant_tokens_mask=True, **dict(variables))
        ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
        if train == "all":
            mask = [1] * len(ids)
        if train == "last_turn":  # the last run of ones
            last = max((i for i, m in enumerate(mask) if m), default=-1)
            first = last
            while first > 0 and mask[first - 1]:
                first -= 1
            mask = [int(first <= i <= last) for i in range(len(mask))]
        out.append((ids, mask))
    return out


def check_equal(what, fast, got, want):
    count = lambda documents: collections.Counter((tuple(i), tuple(m)) for i, m in documents)
    missing, extra = count(want) - count(got), count(got) - count(want)
    if not missing and not extra:
        return
    print(f"{what}: {sum(missing.values())} documents missing, {sum(extra.values())} unexpected of {len(want)}")
    show = lambda ids, mask: "".join(f"[{fast.decode([i])}]" if m else fast.decode([i]) for i, m in zip(ids, mask))
    for documents in (missing, extra):
        ids, mask = next(iter(sorted(documents)), ((), ()))
        print("missing:" if documents is missing else "unexpected:", repr(show(ids, mask)))
    sys.exit(1)


def check_family(driver, folder, name, family):
    compared = 0
    conversations = make_conversations(family.tools)
    source = folder / "conversations.jsonl"
    source.write_text("".join(json.dumps({"messages": c}, ensure_ascii=i % 2 == 0) + "\n" for i, c in enumerate(conversations)))
    for style, template in (("marked", marked(family.template)), ("plain", plain(family.template))):
        fast = make_tokenizer(folder / style, family, template)
        for train in ("assistant_turns", "last_turn", "all"):
            want = want_of(fast, conversations, marked(family.template), train, family.variables)
            output = folder / f"{style}-{train}"
            prepare(driver, tokenizer=folder / style, output=output, format="messages", input=source, pack=0, train=train,
                    variable=[f"{k}={json.dumps(v)}" for k, v in family.variables])
            got, _, manifest = read_documents(output)
            assert manifest["kind"] == "sft" and manifest["train_on"] == train
            check_equal(f"{name} {style} {train}", fast, got, want)
            compared += len(got)
    # The published template gives the ids that the marked one gives.
    for messages in conversations:
        texts = [fast.apply_chat_template(messages, chat_template=t, tokenize=False, **dict(family.variables))
                 for t in (plain(family.template), marked(family.template))]
        assert texts[0] == texts[1], texts
    return compared


def check_packing(driver, folder):
    family = FAMILIES["smollm2"]
    fast = make_tokenizer(folder / "tok", family, plain(family.template))
    conversations = make_conversations(False)
    source = folder / "all.json"
    source.write_text(json.dumps([{"messages": c} for c in conversations * 3], indent=1, ensure_ascii=False))
    n = 300
    report = prepare(driver, tokenizer=folder / "tok", output=folder / "packed", format="messages", input=source, pack=n)
    documents, bins, manifest = read_documents(folder / "packed")
    want = want_of(fast, conversations * 3, marked(family.template), "assistant_turns", ())
    pad = fast.eos_token_id
    assert len(documents) == len(want) == report["documents"]
    real = collections.Counter((tuple(i[:n]), tuple(m[:n])) for i, m in want)
    trimmed = collections.Counter()
    for ids, mask in documents:
        ids, mask = list(ids), list(mask)
        while (tuple(ids), tuple(mask)) not in real:
            assert ids and ids[-1] == pad and mask[-1] == 0, "a document that is none of the conversations"
            ids.pop(), mask.pop()
        trimmed[tuple(ids), tuple(mask)] += 1
    assert trimmed == real, "not every conversation once"
    assert report["padding"] == len(bins) * n + len(manifest["shards"]) - report["tokens"]
    filled = report["tokens"] / (report["tokens"] + report["padding"])
    assert filled > 0.9, filled
    assert report["cut"] == sum(len(i) > n for i, _ in want)
    return f"{len(bins)} bins of {n} tokens, {filled:.1%} filled"


def check_preferences(driver, folder):
    family = FAMILIES["smollm2"]
    fast = make_tokenizer(folder / "tok", family, plain(family.template))
    pairs = ENGLISH + CHINESE
    records = [{"prompt": q, "chosen": a, "rejected": pairs[(i + 1) % len(pairs)][1]} for i, (q, a) in enumerate(pairs)] * 4
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    n = 200
    report = prepare(driver, tokenizer=folder / "tok", output=folder / "out", format="preference",
                     input=folder / "pairs.jsonl", pack=n)
    documents, bins, manifest = read_documents(folder / "out")
    assert manifest["kind"] == "preference" and len(documents) == 2 * len(records) == report["documents"]
    answer = lambda r, key: [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r[key]}]
    want = collections.Counter()
    for r in records:
        (a, am), (b, bm) = want_of(fast, [answer(r, "chosen"), answer(r, "rejected")], marked(family.template), "", ())
        keep = min(len(a), max(n // 2, n - len(b)))
        a, am, b, bm = a[:keep], am[:keep], b[:n - keep], bm[:n - keep]
        want[tuple(a), tuple(am), tuple(b), tuple(bm)] += 1
    seen = 0
    for (a, am), (b, bm) in zip(documents[::2], documents[1::2]):
        b, bm = list(b), list(bm)
        while b and want[tuple(a), tuple(am), tuple(b), tuple(bm)] == 0:
            assert bm[-1] == 0 and b[-1] == fast.eos_token_id
            b.pop(), bm.pop()
        want[tuple(a), tuple(am), tuple(b), tuple(bm)] -= 1
        seen += 1
    assert seen == len(records) and not +want
    return f"{seen} pairs in {len(bins)} bins"


def main(driver):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for family in FAMILIES:
            (folder / family).mkdir()
            compared = check_family(driver, folder / family, family, FAMILIES[family])
            print(f"{family}: {compared} documents have transformers' ids and masks")
        for what, check in (("packing", check_packing), ("preferences", check_preferences)):
            (folder / what).mkdir()
            print(f"{what}: {check(driver, folder / what)}")


if __name__ == "__main__":
    main(sys.argv[1])
