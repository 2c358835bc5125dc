"""A QLoRA run: stop + resume is bit-identical to never having stopped; the export is the unquantised base with the adapters
merged into it, as PEFT merges them; a layout whose slices cut blocks is refused, in a dry run too.      qlora.py"""
import peft
import torch
import transformers

from fixture import Report, Workspace, hearth, train_arguments
from objectives import copy_tokenizer, make_model

STEPS, HALF = 8, 4
SIZES = {"model__hidden_size": 128, "model__intermediate_size": 384}


def check_export(report, workspace):
    hearth(["export", "runs/whole", "--output", "merged"], workspace.folder)
    hearth(["export", "runs/whole", "--adapters", "--output", "adapters"], workspace.folder)
    got = transformers.AutoModelForCausalLM.from_pretrained(workspace.path("merged"), dtype=torch.float32).state_dict()
    base = transformers.AutoModelForCausalLM.from_pretrained(workspace.path("start"), dtype=torch.float32)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    want = peft.PeftModel.from_pretrained(base, workspace.path("adapters")).merge_and_unload().state_dict()
    worst = max(float((got[name] - want[name]).abs().max() / want[name].abs().max()) for name in want)
    moved = max(float((want[name] - before[name]).abs().max()) for name in want)
    # Sums of 4 products in fp32, added to a weight.
    report.check("export equals PEFT's merge into the unquantised base", got.keys() == want.keys() and worst <= 1e-6,
                 f"{worst:.1e} of the largest; adapters move weights by up to {moved:.1e}")
    report.check("the adapters have moved", moved > 1e-4)


def main():
    transformers.utils.logging.disable_progress_bar()
    report = Report()
    with Workspace() as workspace:
        make_model(workspace.path("start"), 3, hidden_size=128, intermediate_size=384)
        copy_tokenizer(workspace, workspace.path("start"))
        workspace.write_config(**SIZES, model__init_from="start", objective__lora_rank=4, objective__quantize_base="nf4",
                               training__train_iters=STEPS, checkpoint__save_interval=HALF)
        for layout, sets in (("dp2", []), ("zero3", ["parallel.zero_stage=3"])):
            workspace.train("whole" if layout == "dp2" else layout, ranks=2, sets=sets)
            name = f"{layout}_cut"
            workspace.train(name, ranks=2, sets=[*sets, f"training.train_iters={HALF}"])
            workspace.train(name, ranks=2, sets=sets)
            report.same_losses(f"{layout}: stop and resume", workspace.losses(name, STEPS),
                               workspace.losses("whole" if layout == "dp2" else layout, STEPS))
        check_export(report, workspace)
        workspace.write_config("cut.yaml", **{**SIZES, "model__hidden_size": 64}, objective__lora_rank=4,
                               objective__quantize_base="nf4", model__init_from="nowhere")
        done = hearth([*train_arguments("cut", "cut.yaml", ["parallel.tensor_model_parallel_size=2"]), "--dry-run"],
                      workspace.folder, ranks=2, check=False)
        report.check("slices that cut blocks are refused", done.returncode == 3 and "blocks of 64" in done.stderr,
                     f"exit {done.returncode}")
    report.finish()


if __name__ == "__main__":
    main()
