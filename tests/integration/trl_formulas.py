"""The formulas that objectives.py compares Hearth with are those of TRL: DPOTrainer.dpo_loss and
GKDTrainer.generalized_jsd_loss, of a pinned release, give the same values and gradients on random numbers. TRL is installed
into a temporary folder, with what it imports; skipped where no package index can be reached."""
import subprocess
import sys
import tempfile
import types

import torch

from fixture import Report
from objectives import divergence, preference

# The last release with dpo_loss as a method of its own. The others are imported by it, and used by nothing here.
PACKAGES = ["trl==0.28.0", "datasets==5.2.0", "pyarrow==26.0.1", "pandas==3.1.1", "dill==0.4.1", "multiprocess==0.70.19",
            "xxhash==4.1.0", "httpx==0.28.1", "httpcore==1.0.9"]
# Two formulations in fp64 of values and gradients of order 1 to 100: some hundred roundings of 1e-16.
TOLERANCE = 1e-12
SKIPPED = 77


def import_trl(folder):
    """The two trainers. This release expects of transformers 4 a truth value where transformers 5 gives a pair."""
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *PACKAGES],
                          capture_output=True, text=True)
    if done.returncode != 0:
        print(f"skipped: {done.stderr.strip().splitlines()[-1] if done.stderr else 'pip failed'}")
        sys.exit(SKIPPED)
    sys.path.insert(0, folder)
    from transformers.utils import import_utils
    pair = import_utils._is_package_available
    import_utils._is_package_available = lambda name, return_version=False: \
        pair(name, return_version=True) if return_version else pair(name)[0]
    import trl.import_utils  # noqa: F401
    import_utils._is_package_available = pair
    from trl.experimental.gkd.gkd_trainer import GKDTrainer
    from trl.trainer.dpo_trainer import DPOTrainer
    return DPOTrainer, GKDTrainer


def difference(ours, theirs, leaf):
    """Largest difference of two losses per row and of their gradients with respect to `leaf`, relative to the largest entry."""
    def relative(a, b):
        return float((a - b).abs().max() / b.abs().max())
    gradients = [torch.autograd.grad(loss.sum(), leaf, retain_graph=True)[0] for loss in (ours, theirs)]
    return max(relative(ours.detach(), theirs.detach()), relative(*gradients))


def check_preferences(report, trainer):
    logps = -40 * torch.rand(4, 64, dtype=torch.float64)  # chosen, rejected, and the reference's
    logps.requires_grad_()
    for kind, beta, smoothing in [("sigmoid", 0.1, 0.0), ("sigmoid", 0.3, 0.1), ("sigmoid", 1.0, 0.4), ("hinge", 0.2, 0.0),
                                  ("ipo", 0.5, 0.0), ("ipo", 0.05, 0.0)]:
        options = types.SimpleNamespace(beta=beta, label_smoothing=smoothing, reference_free=False, f_divergence_type="reverse_kl",
                                        f_divergence_params=None, loss_type=[kind], accelerator=types.SimpleNamespace(device="cpu"))
        theirs, chosen, rejected = trainer.dpo_loss(options, *logps, loss_type=kind)
        gains = logps[:2] - logps[2:]
        worst = difference(preference(kind, gains[0] - gains[1], beta, smoothing), theirs, logps)
        report.check(f"{kind}, beta {beta}, label_smoothing {smoothing}", worst <= TOLERANCE, f"{worst:.1e}")
        rewards = beta * gains.detach()
        report.check(f"{kind}, beta {beta}: rewards", torch.equal(rewards[0], chosen) and torch.equal(rewards[1], rejected))


def check_divergences(report, trainer):
    student, teacher = (3 * torch.randn(2, 9, 50, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    for kind, beta, their_beta in [("forward_kl", 0.5, 0), ("reverse_kl", 0.5, 1), ("jsd", 0.5, 0.5), ("jsd", 0.3, 0.3), ("jsd", 0.9, 0.9)]:
        for temperature in (1.0, 2.5):
            theirs = trainer.generalized_jsd_loss(student, teacher, beta=their_beta, temperature=temperature, reduction="none").sum(-1)
            worst = difference(divergence(kind, student, teacher, temperature, beta), theirs, student)
            report.check(f"{kind} is TRL's beta {their_beta}, temperature {temperature}", worst <= TOLERANCE, f"{worst:.1e}")


def main():
    torch.manual_seed(11)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="hearth-trl.") as folder:
        preference_trainer, distillation_trainer = import_trl(folder)
        check_preferences(report, preference_trainer)
        check_divergences(report, distillation_trainer)
    report.finish()


if __name__ == "__main__":
    main()
