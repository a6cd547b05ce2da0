"""Test fleets for people who write apps or operate fedfleet: start one, hurt it, read what the run made of it.

Here belongs what drives processes and clusters from outside, by their command lines and the coordinator's API. None of
fedfleet's own code is imported: what is tested here is what a person has installed.
"""

from fedfleet_testfleet.fault import Action, Fault
from fedfleet_testfleet.fleet import Cluster, Fleet, Node
from fedfleet_testfleet.report import Observation, Outcome, Report
from fedfleet_testfleet.scenario import Scenario, Step

__all__ = ["Action", "Cluster", "Fault", "Fleet", "Node", "Observation", "Outcome", "Report", "Scenario", "Step"]
