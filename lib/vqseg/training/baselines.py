"""Methods to compare with, on the same loop and with the plain U-Net of the same size."""

from __future__ import annotations

from vqseg.training.step import Consistency, Method, StepInputs, Stream

__all__ = ["CutMix", "MeanTeacher", "UniMatch"]


class MeanTeacher(Method):
    """Consistency of a student with feature dropout with its mean teacher (Tarvainen and Valpola, arXiv 1703.01780).

    The teacher answers with pseudo-labels where it is sure, as in PS-MT (Liu et al., arXiv 2111.12903), and not with
    probabilities at all voxels, so that it differs from the other methods here in its perturbation alone.
    """

    def streams(self, inputs: StepInputs) -> list[Stream]:
        streams = [self.labelled_stream(inputs)]
        if inputs.unlabelled is not None:
            streams.append(self.perturbed_stream(inputs, self.weak_view(inputs)))
        return streams


class CutMix(Consistency):
    """A strong view with CutMix and a weak one with feature dropout.

    With `loss.perturbed` 0 it is FixMatch (Sohn et al., arXiv 2001.07685) with CutMix and a mean teacher.
    """


class UniMatch(Consistency):
    """Two strong views with CutMix and a weak one with feature dropout.

    UniMatch (Yang et al., arXiv 2208.09910) with the teacher and the views of all methods here.
    """

    strong_views = 2
