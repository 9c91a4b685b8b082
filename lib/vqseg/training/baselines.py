"""Methods to compare with, on the same loop and with the plain U-Net of the same size."""

from __future__ import annotations

from vqseg.training.step import Method, StepInputs, Stream, VQSegMethod

__all__ = ["CutMix", "MeanTeacher"]


class MeanTeacher(Method):
    """Consistency of a student with feature dropout with its mean teacher (Tarvainen and Valpola, arXiv 1703.01780).

    The teacher answers with pseudo-labels, as in PS-MT (Liu et al., arXiv 2111.12903), for they were the better ones.
    """

    def streams(self, inputs: StepInputs) -> list[Stream]:
        streams = [self.labelled_stream(inputs)]
        if inputs.unlabelled is not None:
            streams.append(self.perturbed_stream(inputs, self.weak_view(inputs)))
        return streams


class CutMix(VQSegMethod):
    """A strong view with CutMix and a weak one with feature dropout: VQ-Seg's streams without what is VQ-Seg's own.

    UniMatch (Yang et al., arXiv 2208.09910) with a mean teacher; with `loss.perturbed` 0 it is FixMatch (Sohn et al.,
    arXiv 2001.07685) with CutMix.
    """

    quantized = False
