"""WATCH: what the symmetries of a network do during a training run, live."""

from gaugefix.monitor.adam import AdamStateMonitor as AdamStateMonitor
from gaugefix.monitor.events import Event as Event
from gaugefix.monitor.log import LogReader as LogReader
from gaugefix.monitor.log import MonitorLog as MonitorLog
from gaugefix.monitor.log import read_log as read_log
from gaugefix.monitor.monitor import Monitor as Monitor
from gaugefix.monitor.neuron_topology import NeuronTopologyMonitor as NeuronTopologyMonitor
from gaugefix.monitor.schedule import LEVELS as LEVELS
from gaugefix.monitor.schedule import Schedule as Schedule
from gaugefix.monitor.sinks import CsvSink as CsvSink
from gaugefix.monitor.sinks import JsonlSink as JsonlSink
from gaugefix.monitor.sinks import LiveSink as LiveSink
from gaugefix.monitor.sinks import TensorBoardSink as TensorBoardSink
from gaugefix.monitor.sinks import TrackerSink as TrackerSink
from gaugefix.monitor.symmetry_tracker import Coincidence as Coincidence
from gaugefix.monitor.symmetry_tracker import SymmetryTracker as SymmetryTracker
from gaugefix.monitor.transverse import TransverseExponent as TransverseExponent
from gaugefix.monitor.transverse import TransverseMonitor as TransverseMonitor
