#!/usr/bin/perl
# A small HTTP/1.1 server that needs nothing but Debian's perl-base.
#
# A parent listens and keeps its workers alive; each worker serves any number of connections from one
# select loop, so that idle keep-alive connections cost nothing. On SIGTERM nothing new is accepted,
# everything that was begun is finished, and the exit status is 0.
use strict;
use warnings;
use Errno qw(EAGAIN EINTR EWOULDBLOCK);
use IO::Socket::INET;
use POSIX ();
use Socket qw(IPPROTO_TCP SOMAXCONN TCP_NODELAY);

my $MAX_HEAD    = 16 * 1024;
my $MAX_BODY    = 1024 * 1024;
my $IDLE        = 75;     # seconds a connection may be silent
my $LINGER      = 0.2;    # seconds that idle connections may still bring a request after SIGTERM
my $STOP_WITHIN = 8;      # seconds; whoever runs us kills us after ten

my $port     = $ENV{PORT} or die "PORT is not set\n";
my $workers  = $ENV{WEB_WORKERS} || 4;
my $host     = (POSIX::uname())[1];
my $version  = first_line('VERSION') // 'unknown';
my $settings = settings($ENV{APP_SETTINGS_YAML});
my $greeting = $settings->{greeting} // 'Hello';
my $healthy  = ($settings->{healthy} // 'true') !~ /^(?:false|no|off)$/i;

my $stopping = 0;
my $ticks    = POSIX::sysconf(POSIX::_SC_CLK_TCK());
$| = 1;
$SIG{PIPE} = 'IGNORE';

my $listener = IO::Socket::INET->new(
    LocalAddr => '0.0.0.0', LocalPort => $port, Proto => 'tcp', Listen => SOMAXCONN, ReuseAddr => 1, Blocking => 0,
) or die "cannot listen on port $port: $@\n";

# --- the parent ---------------------------------------------------------------------------------------

sub parent {
    my %alive;
    $SIG{TERM} = $SIG{INT} = sub { $stopping = 1 };
    print "hello_perl $version listens on port $port with $workers workers\n";
    until ($stopping) {
        while (keys %alive < $workers) {
            my $pid = fork() // die "cannot fork: $!\n";
            if ($pid == 0) { worker(); exit 0 }
            $alive{$pid} = 1;
        }
        # A signal that comes between the test above and the wait is noticed within the second.
        reap(\%alive, 1);
    }
    close $listener;
    kill 'TERM', keys %alive;
    my $deadline = now() + $STOP_WITHIN + 1;
    reap(\%alive, 0.05) while %alive && now() < $deadline;
    kill 'KILL', keys %alive;
    print "hello_perl $version has stopped\n";
    exit 0;
}

sub reap {
    my ($alive, $seconds) = @_;
    my $reaped = 0;
    while ((my $pid = waitpid(-1, POSIX::WNOHANG())) > 0) {
        delete $alive->{$pid};
        $reaped = 1;
    }
    # Not faster than this when workers die as they start; a signal ends the nap.
    select undef, undef, undef, $reaped && !$stopping ? 0.1 : $seconds;
}

# --- a worker -----------------------------------------------------------------------------------------

# A connection: sock, in and out (bytes), heard (time of the last byte), close (after what is in `out`),
# begun (a request is being read or answered), later (a time) and then (what to do at it).
my %connections;

sub worker {
    # A parent that was killed must not leave its workers on the port.
    my $parent = getppid();
    my $stop_at;
    while (1) {
        exit 1 if !$stopping && getppid() != $parent;
        if ($stopping && !$stop_at) {
            # Who is already in the queue was promised an answer.
            accept_all();
            close $listener;
            $stop_at = now();
        }
        my $now = now();
        if ($stop_at) {
            for my $c (values %connections) {
                drop($c) if (!$c->{begun} && $now > $stop_at + $LINGER) || $now > $stop_at + $STOP_WITHIN;
            }
            return unless %connections;
        }

        my ($read, $write) = ('', '');
        vec($read, fileno $listener, 1) = 1 unless $stop_at;
        my $wait = $stop_at ? 0.05 : 1;
        for my $fd (keys %connections) {
            my $c = $connections{$fd};
            if (defined $c->{later}) {
                my $left = $c->{later} - $now;
                $wait = $left if $left < $wait;
            }
            # One answer after the other: further requests wait in the socket.
            vec($read,  $fd, 1) = 1 unless $c->{then} || length $c->{out};
            vec($write, $fd, 1) = 1 if length $c->{out};
        }
        my $ready = select $read, $write, undef, $wait < 0 ? 0 : $wait;
        ($read, $write) = ('', '') if $ready <= 0;

        accept_all() if !$stop_at && $ready > 0 && vec($read, fileno $listener, 1);
        $now = now();
        for my $fd (keys %connections) {
            my $c = $connections{$fd} or next;
            if ($c->{then} && $now >= $c->{later}) {
                my $then = $c->{then};
                delete @$c{qw(then later)};
                $then->($c);
                flush_out($c);
                serve($c) if $connections{$fd};
            }
            elsif (vec($write, $fd, 1)) {
                flush_out($c);
                serve($c) if $connections{$fd};
            }
            elsif (vec($read, $fd, 1)) {
                hear($c, $now);
            }
            elsif ($now - $c->{heard} > $IDLE && !$c->{then}) {
                drop($c);
            }
        }
    }
}

sub accept_all {
    while (my $sock = $listener->accept) {
        $sock->blocking(0);
        setsockopt $sock, IPPROTO_TCP, TCP_NODELAY, 1;
        my $fd = fileno $sock;
        # select takes no higher ones.
        if ($fd >= 1000) { close $sock; next }
        $connections{$fd} = { sock => $sock, fd => $fd, in => '', out => '', heard => now(), begun => 0 };
    }
}

sub hear {
    my ($c, $now) = @_;
    my $read = sysread $c->{sock}, $c->{in}, 65536, length $c->{in};
    if (!defined $read) {
        drop($c) unless $! == EAGAIN || $! == EINTR || $! == EWOULDBLOCK;
        return;
    }
    return drop($c) if $read == 0;
    $c->{heard} = $now;
    $c->{begun} = 1;
    serve($c);
}

sub flush_out {
    my ($c) = @_;
    return unless length $c->{out};
    my $written = syswrite $c->{sock}, $c->{out};
    if (!defined $written) {
        drop($c) unless $! == EAGAIN || $! == EINTR || $! == EWOULDBLOCK;
        return;
    }
    substr($c->{out}, 0, $written, '');
    $c->{heard} = now();
    drop($c) if $c->{close} && !length $c->{out} && !$c->{then};
}

sub drop {
    my ($c) = @_;
    delete $connections{ $c->{fd} };
    close $c->{sock};
}

# --- HTTP ---------------------------------------------------------------------------------------------

# Answers the complete requests that were read, one after the other.
sub serve {
    my ($c) = @_;
    until ($c->{then} || $c->{close} || length $c->{out}) {
        my $request = request($c);
        if (!$request) {
            $c->{begun} = length $c->{in} ? 1 : 0 unless length $c->{out} || $c->{close};
            last;
        }
        answer($c, $request);
        flush_out($c);
        return unless $connections{ $c->{fd} };
        $c->{begun} = length($c->{in}) || length($c->{out}) || $c->{then} ? 1 : 0;
    }
    flush_out($c) if $connections{ $c->{fd} };
}

# Takes one request off the input; nothing when it is not complete, or was refused.
sub request {
    my ($c) = @_;
    $c->{in} =~ s/^(?:\r?\n)+//;
    my $end = index $c->{in}, "\r\n\r\n";
    if ($end < 0) {
        refuse($c, 431, 'the head is too long') if length $c->{in} > $MAX_HEAD;
        return;
    }
    return refuse($c, 431, 'the head is too long') if $end > $MAX_HEAD;
    my ($first, @lines) = split /\r\n/, substr $c->{in}, 0, $end;
    my ($method, $target, $minor) = $first =~ m{^([A-Z]+) (\S+) HTTP/1\.([01])$}
        or return refuse($c, 400, 'not an HTTP/1.1 request');
    my %head;
    for (@lines) {
        my ($name, $value) = /^([!#\$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*$/ or return refuse($c, 400, 'a broken header');
        $name = lc $name;
        return refuse($c, 400, "$name twice") if exists $head{$name} && $name =~ /^(?:host|content-length)$/;
        $head{$name} = exists $head{$name} ? "$head{$name}, $value" : $value;
    }
    return refuse($c, 400, 'no Host') if $minor && !exists $head{host};

    my $rest = $end + 4;
    if (exists $head{'transfer-encoding'}) {
        return refuse($c, 400, 'two lengths') if exists $head{'content-length'};
        return refuse($c, 501, 'unknown transfer encoding') if lc $head{'transfer-encoding'} ne 'chunked';
        $rest = after_chunks($c, $rest) // return go_on($c, \%head);
    }
    elsif (exists $head{'content-length'}) {
        return refuse($c, 400, 'a broken length') if $head{'content-length'} !~ /^\d{1,15}$/;
        return refuse($c, 413, 'the body is too long') if $head{'content-length'} > $MAX_BODY;
        $rest += $head{'content-length'};
        return go_on($c, \%head) if length $c->{in} < $rest;
    }
    return if $c->{close};
    substr $c->{in}, 0, $rest, '';
    delete $c->{went_on};
    my $wish = lc($head{connection} // '');
    my $keep = $minor ? $wish !~ /\bclose\b/ : $wish =~ /\bkeep-alive\b/;
    return { method => $method, target => $target, minor => $minor, keep => $keep };
}

# Where the request after a chunked body begins; undef when the body is not complete, or was refused.
sub after_chunks {
    my ($c, $at) = @_;
    my $total = 0;
    while (1) {
        my $line_end = index $c->{in}, "\r\n", $at;
        if ($line_end < 0) {
            refuse($c, 400, 'a broken chunk') if length($c->{in}) - $at > 256;
            return undef;
        }
        my ($size) = substr($c->{in}, $at, $line_end - $at) =~ /^([0-9A-Fa-f]{1,6})[ \t]*(?:;.*)?$/;
        if (!defined $size) { refuse($c, 400, 'a broken chunk'); return undef }
        $size = hex $size;
        $total += $size;
        if ($total > $MAX_BODY) { refuse($c, 413, 'the body is too long'); return undef }
        $at = $line_end + 2;
        last if $size == 0;
        return undef if length $c->{in} < $at + $size + 2;
        if (substr($c->{in}, $at + $size, 2) ne "\r\n") { refuse($c, 400, 'a broken chunk'); return undef }
        $at += $size + 2;
    }
    # Trailers, if any, end with an empty line.
    while (1) {
        my $line_end = index $c->{in}, "\r\n", $at;
        if ($line_end < 0) {
            refuse($c, 431, 'the trailers are too long') if length($c->{in}) - $at > $MAX_HEAD;
            return undef;
        }
        return $line_end + 2 if $line_end == $at;
        $at = $line_end + 2;
    }
}

sub go_on {
    my ($c, $head) = @_;
    return if $c->{close} || $c->{went_on} || lc($head->{expect} // '') ne '100-continue';
    $c->{went_on} = 1;
    my $line = "HTTP/1.1 100 Continue\r\n\r\n";
    # A fresh socket's buffer always has room for these few bytes.
    syswrite $c->{sock}, $line;
    return;
}

my %REASON = (
    200 => 'OK', 400 => 'Bad Request', 404 => 'Not Found', 405 => 'Method Not Allowed', 413 => 'Content Too Large',
    431 => 'Request Header Fields Too Large', 501 => 'Not Implemented', 503 => 'Service Unavailable',
);

sub refuse {
    my ($c, $status, $why) = @_;
    respond($c, { method => 'GET', minor => 1, keep => 0 }, $status, "$why\n");
    return;
}

sub head {
    my ($c, $request, $status, @more) = @_;
    $request->{keep} = 0 if $stopping;
    $c->{close} = 1 unless $request->{keep};
    my $connection = $request->{keep} ? 'keep-alive' : 'close';
    return join "\r\n", "HTTP/1.1 $status $REASON{$status}", 'Content-Type: text/plain; charset=utf-8',
        "X-App-Version: $version", "Connection: $connection", @more, '', '';
}

sub respond {
    my ($c, $request, $status, $body, @more) = @_;
    $c->{out} .= head($c, $request, $status, 'Content-Length: ' . length $body, @more);
    $c->{out} .= $body unless $request->{method} eq 'HEAD';
}

# --- the app ------------------------------------------------------------------------------------------

sub answer {
    my ($c, $request) = @_;
    my ($path, $query) = $request->{target} =~ m{^(?:http://[^/?]+)?([^?]*)(?:\?(.*))?$};
    my ($ms) = ($query // '') =~ /(?:^|&)ms=(\d{1,5})(?:&|$)/;
    if ($request->{method} !~ /^(?:GET|HEAD)$/) {
        respond($c, $request, 405, "only GET and HEAD\n", 'Allow: GET, HEAD');
    }
    elsif ($path eq '' || $path eq '/') {
        respond($c, $request, 200, page());
    }
    elsif ($path eq '/healthz') {
        respond($c, $request, $healthy ? (200, "ok\n") : (503, "told to be ill by the settings\n"));
    }
    elsif ($path eq '/slow') {
        after($c, $ms // 1000, sub { respond($c, $request, 200, page()) });
    }
    elsif ($path eq '/stream') {
        stream($c, $request, $ms // 100);
    }
    else {
        respond($c, $request, 404, "no such page: try / /healthz /slow?ms=500 /stream?ms=100\n");
    }
}

sub page {
    return "$greeting from hello_perl\nversion: $version\nhost: $host\nport: $port\npid: $$\n";
}

# Ten lines, one every so many milliseconds.
sub stream {
    my ($c, $request, $ms) = @_;
    my $chunked = $request->{minor};
    $request->{keep} = 0 unless $chunked;
    $c->{out} .= head($c, $request, 200, $chunked ? 'Transfer-Encoding: chunked' : ());
    return if $request->{method} eq 'HEAD';
    my $n = 0;
    my $step;
    $step = sub {
        my $line = sprintf "line %d of 10 from version %s\n", ++$n, $version;
        $c->{out} .= $chunked ? sprintf("%x\r\n%s\r\n", length $line, $line) : $line;
        return after($c, $ms, $step) if $n < 10;
        $c->{out} .= "0\r\n\r\n" if $chunked;
        undef $step;
    };
    after($c, 0, $step);
}

sub after {
    my ($c, $ms, $then) = @_;
    $c->{later} = now() + $ms / 1000;
    $c->{then}  = $then;
}

# --- small things -------------------------------------------------------------------------------------

# Seconds since some moment, to a hundredth; perl-base has no Time::HiRes.
sub now { return (POSIX::times())[0] / $ticks }

sub first_line {
    my ($file) = @_;
    open my $in, '<', $file or return undef;
    my $line = <$in> // '';
    $line =~ s/\s+$//;
    return $line;
}

# The settings' simple texts (`key: value`); whoever needs more brings a YAML library.
sub settings {
    my ($file) = @_;
    my %found;
    return \%found unless defined $file && open my $in, '<', $file;
    while (<$in>) {
        next unless /^([A-Za-z_]\w*):[ \t]+(.*?)\s*$/;
        my ($key, $value) = ($1, $2);
        $value =~ s/^(['"])(.*)\1$/$2/;
        $found{$key} = $value;
    }
    return \%found;
}

parent();
