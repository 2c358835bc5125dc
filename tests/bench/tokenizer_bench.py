"""tokenizer_bench.py TOKENIZER_JSON TEXT_FILE: what tokenizer_bench.cpp measures, for `tokenizers` on one thread."""
import os
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import tokenizers  # noqa: E402

text = open(sys.argv[2], "rb").read()
parts, at = [], 0
while at < len(text):
    end = text.find(b"\n", at + 4096) if len(text) - at > 4096 else -1
    end = len(text) if end < 0 else end + 1
    parts.append(text[at:end].decode("utf-8", errors="replace"))
    at = end
start = time.time()
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[1])
load_seconds = time.time() - start
best = float("inf")
for _ in range(3):
    start = time.time()
    count = sum(len(e.ids) for e in tokenizer.encode_batch_fast(parts, add_special_tokens=False))
    best = min(best, time.time() - start)
print(f"{sys.argv[1]:<40} {len(text) / 1e6:6.1f} MB {count:>9} tokens  load {load_seconds:.2f} s  "
      f"1 thread(s): {len(text) / 1e6 / best:.1f} MB/s each")
