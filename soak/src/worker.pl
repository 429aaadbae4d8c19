# Runs in a guest. Holds memory whose content is known, counts, keeps a connection open, and
# answers questions about all three on 127.0.0.1:7007, one line each:
#   set BLOCK GENERATION   writes that block anew          -> ok
#   ticks                                                  -> TICKS ECHOES BROKEN
#   dump                                                   -> all blocks, as bytes
use strict;
use warnings;
use Socket;

my ($life, $blocks) = @ARGV;
my $size = 65536;
$SIG{PIPE} = 'IGNORE';

# Waits for callers on a port of this machine.
sub door {
    my ($port) = @_;
    socket(my $door, PF_INET, SOCK_STREAM, 0) or die "socket: $!";
    setsockopt($door, SOL_SOCKET, SO_REUSEADDR, 1) or die "setsockopt: $!";
    bind($door, pack_sockaddr_in($port, INADDR_LOOPBACK)) or die "bind: $!";
    listen($door, 16) or die "listen: $!";
    return $door;
}

# The connection that has to outlive every sleep. Its far end answers each byte with the next one.
# It has a port of its own, so that no early question takes its place.
my $once = door(7006);
my $child = fork // die "fork: $!";
if (!$child) {
    close $once;
    socket(my $line, PF_INET, SOCK_STREAM, 0) or die "socket: $!";
    connect($line, pack_sockaddr_in(7006, INADDR_LOOPBACK)) or die "connect: $!";
    while (sysread($line, my $byte, 1)) { syswrite($line, chr((1 + ord $byte) % 256)) }
    exit;
}
accept(my $peer, $once) or die "accept: $!";
close $once;

my @block;

sub fill {
    my ($number, $generation) = @_;
    my $line = "$life block $number generation $generation\n";
    $block[$number] = substr($line x (1 + $size / length $line), 0, $size);
}
fill($_, 0) for 0 .. $blocks - 1;

my $door = door(7007);
my ($ticks, $echoes, $broken) = (0, 0, 0);
while (1) {
    my $ready = '';
    vec($ready, fileno($door), 1) = 1;
    my $asked = select($ready, undef, undef, 1);
    $ticks++;
    if (!$broken) {
        my $sent = $ticks % 256;
        my $byte;
        my $back = syswrite($peer, chr $sent) && sysread($peer, $byte, 1) ? ord $byte : -1;
        if ($back == ($sent + 1) % 256) { $echoes++ } else { $broken = 1 }
    }
    next unless $asked > 0 && accept(my $caller, $door);
    my ($verb, @rest) = split ' ', (<$caller> // '');
    next unless defined $verb;
    if ($verb eq 'set') { fill(@rest); print $caller "ok\n" }
    elsif ($verb eq 'ticks') { print $caller "$ticks $echoes $broken\n" }
    elsif ($verb eq 'dump') { print $caller $_ for @block }
}
