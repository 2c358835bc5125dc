"""hearth parity: equal layouts are called equal, and where two sides differ the first thing that does is named."""
import json

from fixture import Report, Workspace, device, hearth

TP, PP, CP = "parallel.tensor_model_parallel_size", "parallel.pipeline_model_parallel_size", "parallel.context_parallel_size"
SAME = [
    ("tensor against pipeline", 2, [f"{TP}=2"], [f"{PP}=2"]),
    ("data against all axes", 8, [], [f"{TP}=2", f"{PP}=2", f"{CP}=2", "parallel.zero_stage=3"]),
    ("recompute, zero-bubble, sharded copies", 4, [f"{PP}=2", "parallel.pipeline_schedule=zbv", "recompute.granularity=full"],
     ["parallel.zero_stage=2", "parallel.num_distributed_optimizer_instances=2", "recompute.granularity=none"]),
]
# What differs, and where it must first be seen: the first norm is in layer 0, the embedding is before it.
DIFFERENT = [
    ("another eps", ["model.rms_norm_eps=1.0e-3"], "activation layers.0"),
    ("other weights", ["training.seed=18"], "activation embedding"),
    ("attention over document borders", ["data.reset_attention_mask=false"], "activation layers.0"),
]


def main():
    report = Report()
    with Workspace() as workspace:
        workspace.write_config(model__num_hidden_layers=4, training__global_batch_size=16, training__micro_batch_size=2)

        def parity(ranks, a, b, *more):
            sides = [word for side, sets in (("--a", a), ("--b", b)) for item in sets for word in (side, item)]
            return hearth(["parity", "config.yaml", "--device", device(), *sides, *more], workspace.folder, ranks=ranks,
                          check=False)

        for name, ranks, a, b in SAME:
            done = parity(ranks, a, b, "--json")
            result = json.loads(done.stdout) if done.stdout else {}
            report.check(f"{name}: same", done.returncode == 0 and result.get("same") is True,
                         f"code {done.returncode}, {result.get('first') or result.get('largest')} {done.stderr[-500:]}")
            # embedding, 4 layers, norm; loss; 9 parameters a layer, embedding and norm; gradient norm
            report.check(f"{name}: everything compared", len(result.get("differences", [])) == 6 + 1 + 4 * 9 + 2 + 1,
                         f"{len(result.get('differences', []))}")
        for name, b, first in DIFFERENT:
            # One sample stream for both: the seed of the weights alone may differ through side b.
            done = parity(2, [], b, "--json")
            result = json.loads(done.stdout) if done.stdout else {}
            report.check(f"{name}: first in {first}",
                         done.returncode not in (0, 2) and result.get("first", {}).get("name") == first,
                         f"code {done.returncode}, {result.get('first')} {done.stderr[-500:]}")
        text = parity(2, [f"{TP}=2"], [f"{PP}=2"]).stdout
        report.check("the text says same last", text.rstrip().endswith("same"), text)
        print(text)
        for b, says in [("data.seq_length=32", "same samples"), ("model.intermediate_size=192", "same parameters"),
                        ("model.tie_word_embeddings=false", "same parameters")]:
            refused = parity(2, [], [b])
            report.check(f"refused: {b}", refused.returncode == 2 and says in refused.stderr,
                         f"code {refused.returncode} {refused.stderr[-300:]}")
    report.finish()


if __name__ == "__main__":
    main()
