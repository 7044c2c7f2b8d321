# Arguments: a pipe to make, and the folders of the file systems to watch.  See watcher.py; no apostrophes here.
use Fcntl;
use POSIX ();
my ($pipe, @roots) = @ARGV;
my %numbers = (x86_64 => 300, ppc64le => 323, s390x => 332);  # of fanotify_init; that of fanotify_mark is the next
my $init = $numbers{(POSIX::uname())[4]} || 262;               # asm-generic/unistd.h
sub failed { print "failed $!\n"; exit 1; }
my $fd = syscall($init, 0x15, O_RDONLY);                       # FAN_CLOEXEC, FAN_CLASS_CONTENT, FAN_UNLIMITED_QUEUE
failed() if $fd < 0;
my $exec = 0x40000;                                            # FAN_OPEN_EXEC_PERM: it waits until we have looked
for my $root (@roots) {
    # FAN_MARK_ADD and FAN_MARK_FILESYSTEM; FAN_OPEN; AT_FDCWD
    failed() if syscall($init + 1, $fd, 0x101, 0x20 | $exec, -100, $root) < 0;
}
POSIX::mkfifo($pipe, 0600) or failed();
my $child = fork() // failed();
if ($child) { print "listening $child\n"; exit 0; }
POSIX::setsid();
open(STDIN, "<", "/dev/null");
open(STDOUT, ">", "/dev/null");
open(STDERR, ">", "/dev/null");

my (%heard, %program, %started);
my $ended = 0;
$SIG{TERM} = sub { $ended = 1 };
open(my $events, "+<&=", $fd);
fcntl($events, F_SETFL, O_NONBLOCK);
sub program { return readlink("/proc/$_[0]/exe") // ""; }
sub parent {
    open(my $file, "<", "/proc/$_[0]/stat") or return "";
    my ($id) = (<$file> // "") =~ /\) \S (\d+)/ or return "";
    return $program{$id} // program($id);
}
while (1) {
    my $last = $ended;
    vec(my $ready = "", $fd, 1) = 1;
    select($ready, undef, undef, $last ? 0 : 1);  # the signal may come just before it
    my $read = sysread($events, my $buffer, 1 << 18);
    last if $last && !$read;
    next unless $read;
    for (my $at = 0; $at + 24 <= length $buffer;) {
        my ($length, undef, undef, undef, $mask, $file, $id) = unpack("LCCSQll", substr($buffer, $at, 24));
        $at += $length;
        next if $file < 0;
        my $path = readlink("/proc/self/fd/$file");
        my $who = $program{$id};
        if ($mask & $exec) {
            # The first of a row is the program, or the script; then come its interpreter and the dynamic linker.
            $who //= parent($id);
            $program{$id} = $path unless $started{$id};
            $started{$id} = $path;
            syswrite($events, pack("lL", $file, 1));  # FAN_ALLOW
        } else {
            $who //= $program{$id} = program($id);
            delete $started{$id} unless ($started{$id} // "") eq $path;  # of which its exec told already
        }
        POSIX::close($file);
        $heard{$path}{$who} = 1 unless $id == $$ || !($mask & $exec) && exists $started{$id};
    }
}
close $events;  # whoever waits may go on: who reads the pipe, too
$SIG{ALRM} = sub { exit 1 };  # nobody reads
alarm 60;
open(my $out, ">", $pipe) or exit 1;
for my $path (keys %heard) { print $out "$path\0$_\0" for keys %{$heard{$path}}; }
print $out "\0\0";
close $out;
