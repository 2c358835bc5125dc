#!/usr/bin/env python3
"""Draws the loss of a run: plot_loss.py RUN/metrics.jsonl OUT.svg [UNIGRAM_LOSS]"""
import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402


def series(lines, key):
    points = [(line["step"], line[key]) for line in lines if key in line]
    return [p[0] for p in points], [p[1] for p in points]


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    plt.rcParams["svg.hashsalt"] = "hearth"  # the same run gives the same file
    figure, axes = plt.subplots(figsize=(7, 3.2))
    axes.plot(*series(lines, "lm loss"), linewidth=0.8, label="lm loss")
    axes.plot(*series(lines, "validation loss"), marker="o", markersize=3, label="validation loss")
    if len(sys.argv) > 3:
        axes.axhline(float(sys.argv[3]), linestyle="--", linewidth=0.8, color="grey", label="unigram model, held-out text")
    axes.set_xlabel("step")
    axes.set_ylabel("nats per token")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(sys.argv[2], metadata={"Date": None})


main()
