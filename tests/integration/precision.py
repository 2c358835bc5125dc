"""Number formats and devices against one another, on equal samples and initial weights:
bf16 with fp32 master weights against fp32; on a GPU (HEARTH_TEST_DEVICE=cuda) also fp32 against fp32 on the CPU, and
bf16 on 1, 2 and 4 ranks.
Bounds are ten times what was measured between correct formulations: fp32 3e-7 after 20 steps and 8e-6 after 100; bf16
against fp32 1.8e-4 and 2.8e-3; bf16 between layouts 9e-5 after 20 steps (later steps only by the bf16 bound)."""
from fixture import Report, Workspace, device

STEPS = 100


def main():
    report = Report()
    with Workspace() as workspace:
        workspace.write_config()
        workspace.train("fp32", 1)
        fp32 = workspace.losses("fp32", STEPS)
        workspace.train("bf16", 1, sets=["precision.dtype=bf16"])
        bf16 = workspace.losses("bf16", STEPS)
        report.close_losses("bf16 = fp32", bf16, fp32, 2e-3, 3e-2)
        report.check("bf16 is not fp32", bf16 != fp32)
        if device() == "cuda":
            workspace.train("cpu", 1, on="cpu")
            report.close_losses("fp32 on the GPU = fp32 on the CPU", fp32, workspace.losses("cpu", STEPS), 3e-6, 8e-5)
            for ranks in (2, 4):
                workspace.train(f"bf16_r{ranks}", ranks, sets=["precision.dtype=bf16"])
                report.close_losses(f"bf16 on {ranks} ranks = bf16 on 1", workspace.losses(f"bf16_r{ranks}", STEPS), bf16, 1e-3, 3e-2)
    report.finish()


if __name__ == "__main__":
    main()
