# Asks the kernel to remove an interface (the argument) of the network namespace in which the other end of this
# namespace's eth0 is (IFLA_TARGET_NETNSID), as whoever is root here can; says the error's number, or 0.
sub attribute { my ($kind, $value) = @_; pack("SS", 4 + length $value, $kind) . $value . "\0" x (-length($value) % 4) }
socket(S, 16, 3, 0) or die;
bind(S, pack("SSLL", 16, 0, 0, 0)) or die;
my $body = pack("CxSlLL", 0, 0, 0, 0, 0) . attribute(46, pack("l", 0)) . attribute(3, "$ARGV[0]\0");
send(S, pack("LSSLL", 16 + length $body, 17, 5, 1, 0) . $body, 0) or die;
defined recv(S, my $answer, 65536, 0) or die;
print -unpack("l", substr($answer, 16, 4)), "\n";
