"""The configuration of needrestart(1) keeps agents running."""

import subprocess
from pathlib import Path

import pytest

CONFIGURATION = (
    Path(__file__).resolve().parents[2] / "units/needrestart/conf.d/buildos-agentd.conf"
)

# Finds the selection of a unit as needrestart does.
PERL = """
our %nrconf;
do($ARGV[0]) // die($@ || $!);
for my $pattern (keys %{$nrconf{override_rc}}) {
    print $nrconf{override_rc}{$pattern} if $ARGV[1] =~ /$pattern/;
}
"""


@pytest.mark.parametrize(
    ("unit", "selected"),
    [
        ("buildos-bbot@default.service", "0"),
        ("buildos-bslave@x.service", "0"),
        ("buildos-agentd.service", ""),
        ("other-buildos-bbot@x.service", ""),
    ],
)
def test_needrestart_does_not_select_agents(unit, selected):
    command = ["perl", "-e", PERL, str(CONFIGURATION), unit]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == selected
