"""The PACS: finding, fetching and storing series over DICOMweb, with every failure in words.

A PACS may be down, slow, or answer nonsense; whatever the libraries then raise becomes a `PACSError`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.session_utils import create_session_from_user_pass
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from pydicom.dataset import Dataset
from pydicom.uid import UID
from urllib3.exceptions import ReadTimeoutError

from vqseg.errors import VQSegError

from .pacs_patience import ImpatientAdapter, bounded
from .work_queue import AbandonedError

logger = logging.getLogger(__name__)
# For how long a PACS may be silent. MONAI Label's own 5 s are too short for one that looks on a tape first.
_CONNECT_SECONDS = 5.0
_READ_SECONDS = (
    settings.MONAI_LABEL_DICOMWEB_READ_TIMEOUT
    if "MONAI_LABEL_DICOMWEB_READ_TIMEOUT" in settings.model_fields_set
    else 60.0
)
# For how long an answer may take in all; that with the images of a series may take as long as a request.
_ANSWER_SECONDS = 5 * _READ_SECONDS
UID_PATTERN = r"[0-9.]{1,64}"
# Of an answer in parts: its last mark has at most 74 characters (RFC 2046), and little ever follows.
_LONGEST_END = 1024
# Else a PACS decompresses JPEG 2000 first, or fails to.
_AS_STORED = (("application/dicom", "*"),)
_FOUND_BY = ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID", "StudyDate", "StudyTime", "SeriesDate")


class PACSError(VQSegError):
    """The PACS does not do what it was asked for; the server itself is fine."""


class PACSAwayError(PACSError):
    """It does not answer, or not in time: whatever else it is asked will fare no better."""


@dataclass(frozen=True)
class Series:
    """A series as the PACS lists it. `info` holds what clients read: UIDs, modality, patient, date; `size` is how many
    instances it has, 0 when the PACS does not say.
    """

    uid: str
    study: str
    modality: str
    info: dict[str, str]
    size: int = 0


class PACS:
    """Args: `url` of the DICOMweb service; `seconds` in which it has to send a series.

    Safe for several threads: requests are independent.
    """

    def __init__(self, url: str, seconds: float = 1800.0) -> None:
        self.url, self._seconds = url.rstrip("/"), seconds
        self._client = _Client(
            url=self.url,
            session=session(),
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
        )
        # Ours to report, not to repeat: by default it asks five times, waiting longer each time.
        self._client.set_http_retry_params(retry=False)

    def find(self, modalities: Sequence[str]) -> list[Series]:
        """Every series of these modalities, ordered by its UID."""
        with answering(self.url, "list its series"):
            found = []
            for modality in modalities:
                for item in self._client.search_for_series(search_filters={"Modality": modality}):
                    try:
                        found.append(_series(Dataset.from_json(item)))
                    except (KeyError, ValueError) as error:
                        logger.warning("a series of the PACS is left out: %r", error)
        return sorted(found, key=lambda series: series.uid)

    def headers(self, series: Series) -> list[Dataset]:
        """What the PACS knows of each instance, without pixels; nothing of a series that is gone."""
        with answering(self.url, f"describe the series {series.uid}"):
            try:
                found = self._client.retrieve_series_metadata(series.study, series.uid)
            except requests.HTTPError as error:
                if error.response is not None and error.response.status_code in (404, 410):
                    return []
                raise
            return [Dataset.from_json(header, lambda *_: b"") for header in found]

    def fetch(self, series: Series, folder: Path) -> None:
        """Write every instance of a series into `folder`."""
        with answering(self.url, f"send the series {series.uid}", self._seconds):
            count = 0
            for count, instance in enumerate(self._client.iter_series(series.study, series.uid, _AS_STORED), 1):
                instance.save_as(folder / f"{count:05d}.dcm", write_like_original=False)
        if count == 0:
            raise PACSError(f"the PACS sent no image of the series {series.uid}; was it deleted?")
        # An answer that breaks off may still look whole.
        if count < series.size:
            raise PACSError(
                f"the PACS sent {count} of the {series.size} images of the series {series.uid}: some were deleted, or "
                "its answer broke off; try again"
            )

    def store(self, instance: Dataset) -> None:
        """Store one object."""
        uid = str(instance.SOPInstanceUID)
        try:
            with answering(self.url, "keep the label"):
                answer = self._client.store_instances([instance])
                refused = answer.get("FailedSOPSequence")
                kept = {str(item.ReferencedSOPInstanceUID) for item in answer.get("ReferencedSOPSequence") or []}
        except PACSAwayError:
            raise
        except PACSError:
            # Its answer says nothing, but sent once more the label would be there twice.
            if self._has(uid):
                return
            raise
        if refused:
            raise PACSError(f"the PACS at {self.url} refused the label (reason {refused[0].get('FailureReason')})")
        if uid not in kept and not self._has(uid):
            raise PACSError(f"the PACS at {self.url} did not confirm that it keeps the label")

    def _has(self, instance: str) -> bool:
        """Whether it lists an object, asked where its own answer was not understood."""
        with answering(self.url, "say whether it keeps the label"):
            return bool(self._client.search_for_instances(search_filters={"SOPInstanceUID": instance}))


class _Client(DICOMwebClientX):
    def _decode_multipart_message(self, response: requests.Response, stream: bool) -> Iterator[bytes]:
        """Unlike dicomweb-client 0.60.1 it does not take the image in which an answer breaks off for a whole one, whose
        last voxels would be missing."""
        read, tail = response.iter_content, bytearray()

        def noted(*args: Any, **options: Any) -> Iterator[bytes]:
            for chunk in read(*args, **options):
                tail[:] = (tail + chunk)[-_LONGEST_END:]
                yield chunk

        response.iter_content = noted  # type: ignore[method-assign]
        yield from super()._decode_multipart_message(response, stream)
        boundary = re.search(r'boundary="?([^";]+)', response.headers["content-type"])
        if stream and boundary and f"--{boundary[1]}--".encode() not in tail:
            raise requests.exceptions.ChunkedEncodingError


@contextmanager
def answering(url: str, wish: str, seconds: float | None = None) -> Iterator[None]:
    """Say what goes wrong in a request to the PACS at `url`, which was to do what is wished, as `PACSError`.

    The whole block takes no longer than `seconds`.
    """
    try:
        with bounded(_ANSWER_SECONDS if seconds is None else seconds):
            yield
    except AbandonedError:
        raise
    except requests.Timeout:
        raise _too_slow(url, wish) from None
    except requests.ConnectionError as error:
        # So requests calls the timeout of an answer that has begun.
        if error.args and isinstance(error.args[0], ReadTimeoutError):
            raise _too_slow(url, wish) from None
        raise PACSAwayError(f"the PACS at {url} does not answer: it was to {wish}; is it running?") from None
    except requests.exceptions.ChunkedEncodingError:
        raise PACSError(f"the answer of the PACS at {url} broke off: it was to {wish}; try again") from None
    except requests.HTTPError as error:
        raise PACSError(f"the PACS at {url} could not {wish} ({error})") from None
    except Exception as error:  # not DICOM, not JSON, no such tag: there is no end to what parsers raise
        if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
            raise  # of our own disk
        kind = type(error).__name__
        logger.warning("%s, asked to %s, answered what cannot be read", url, wish, exc_info=True)
        raise PACSError(f"the PACS at {url} answered nonsense when it was to {wish} ({kind})") from None


def _too_slow(url: str, wish: str) -> PACSAwayError:
    return PACSAwayError(f"the PACS at {url} is too slow: it was to {wish}; try again later")


def session() -> requests.Session:
    """With the password of the service, if there is one, and no request that waits for ever."""
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    made = create_session_from_user_pass(user, password) if user and password else requests.Session()
    for scheme in ("http://", "https://"):
        made.mount(scheme, ImpatientAdapter((_CONNECT_SECONDS, _READ_SECONDS)))
    return made


def _series(found: Dataset) -> Series:
    info = {name: str(found[name].value) for name in _FOUND_BY if name in found and found[name].value is not None}
    uid, study = info["SeriesInstanceUID"], info["StudyInstanceUID"]
    # They become names of folders.
    if not (UID(uid).is_valid and UID(study).is_valid):
        raise ValueError(f"{uid!r} in {study!r} is no UID")
    return Series(uid, study, info["Modality"], info, int(found.get("NumberOfSeriesRelatedInstances") or 0))
