"""Packages by the hundred in a Debian guest, as its database and its disk would have them; nothing is downloaded."""

from __future__ import annotations

from vmimagemanager import Box

COUNT = 800
FILES = 30  # half of Debian's packages have fewer

_MAKE = r"""
my ($count, $files) = @ARGV;
mkdir "/usr/share/made";
open my $status, ">>", "/var/lib/dpkg/status" or die;
for my $number (0 .. $count - 1) {
    my ($name, $list, $sums) = (sprintf("made-%03d", $number), "/.\n/usr\n/usr/share\n/usr/share/made\n", "");
    my $folder = "/usr/share/made/$name";
    mkdir $folder or die;
    $list .= "$folder\n";
    for my $file (map { "$folder/file-$_.txt" } 1 .. $files) {
        open my $made, ">", $file or die;
        $list .= "$file\n";
        $sums .= "d41d8cd98f00b204e9800998ecf8427e  " . substr($file, 1) . "\n";
    }
    for (["list", $list], ["md5sums", $sums]) {
        open my $about, ">", "/var/lib/dpkg/info/$name.$_->[0]" or die;
        print $about $_->[1];
    }
    my @needs = map { sprintf("made-%03d (>= 1.0)", $number * $_ % $count) } 7, 11;
    print $status "Package: $name\nStatus: install ok installed\nPriority: optional\nSection: misc\n",
        "Maintainer: Nobody <nobody\@example.org>\nArchitecture: amd64\nVersion: 1.$number-1\n",
        "Depends: libc6 (>= 2.34), @{[join ', ', @needs]}\nDescription: made for a measurement\n\n";
}
"""


def add(box: Box) -> None:
    """Add the packages to those that a running guest has."""
    box.run(["perl", "-e", _MAKE, str(COUNT), str(FILES)])
    box.run(["sync"])
