"""The module that 3D Slicer runs, unmodified, without Slicer: its windows and its scene are stand-ins.

Logging is Python's, as it is in Slicer, which writes what is logged as information to its Python console and its log
(`initLogger` of its `slicerqt.py`).
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock, patch

from servers import script_module

_FOLDER = Path(sys.prefix) / "monailabel" / "plugins" / "slicer" / "MONAILabel"
_IN_SLICER_ALONE = ("ctk", "qt", "SampleData", "SimpleITK", "sitkUtils", "slicer", "vtk", "vtkSegmentationCore")
_BASES = tuple(f"ScriptedLoadableModule{part}" for part in ("", "Widget", "Logic", "Test"))


def slicer_client() -> ModuleType:
    """The client that the module asks the server by; it lies beside the packages, where no import finds it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports cgi, which Python 3.13 removes
        return script_module(_FOLDER / "MONAILabelLib" / "client.py")


class SlicerModule:
    """The widget of the module, connected with a server. Args: `client`, Slicer's client as a module; `folder` is the
    module's own, which it removes in the end."""

    def __init__(self, client: ModuleType, url: str, folder: Path) -> None:
        folder.mkdir()
        self._module = _load(client)
        self._widget = self._module.MONAILabelWidget()
        self._widget.logic = self._module.MONAILabelLogic(str(folder), url)
        self._widget.ui = MagicMock()
        self._widget.ui.serverComboBox.currentText = url
        for name in ("invalidateConfigTable", "saveServerUrl", "initSample", "updateGUIFromParameterNode"):
            setattr(self._widget, name, MagicMock())

    def next_sample(self, strategy: str) -> dict[str, Any]:
        """Press *Next Sample* with this strategy; what the module begins to work on."""
        self._widget.ui.strategyBox.currentText = strategy
        self._widget.onNextSampleButton()
        util = self._module.slicer.util
        for said in (util.errorDisplay, util.warningDisplay):
            assert not said.called, said.call_args
        (sample,) = self._widget.initSample.call_args.args
        return dict(sample)


def _load(client: ModuleType) -> Any:
    stand_ins: dict[str, Any] = {name: MagicMock() for name in _IN_SLICER_ALONE}
    slicer = stand_ins["slicer"]
    stand_ins["qt"].QDialog = stand_ins["ctk"].ctkSettingsPanel = _Base
    slicer.util.VTKObservationMixin = type("VTKObservationMixin", (), {})
    slicer.util.getNodesByClass.return_value = []
    slicer.util.settingsValue = lambda key, default, converter=None: default if isinstance(default, str) else False
    bases = ModuleType("slicer.ScriptedLoadableModule")
    for name in _BASES:
        setattr(bases, name, type(name, (_Base,), {}))
    stand_ins |= {"slicer.i18n": slicer.i18n, "slicer.util": slicer.util, "slicer.ScriptedLoadableModule": bases}
    stand_ins["MONAILabelLib"] = MagicMock(MONAILabelClient=client.MONAILabelClient)
    with patch.dict(sys.modules, stand_ins):
        return script_module(_FOLDER / "MONAILabel.py")


class _Base:
    def __init__(self, *arguments: object) -> None:
        """As those of Slicer, which take a parent."""
