package script

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

var serveCommands = map[string]Command{
	"echo": echo,
	"ask":  ask,
	"web":  web,
}

// atPort takes PLACE PORT apart.
func atPort(command string, args []string) (place string, port uint16, err error) {
	if len(args) == 2 {
		n, err := strconv.ParseUint(args[1], 10, 16)
		if err == nil && n > 0 {
			return args[0], uint16(n), nil
		}
	}
	return "", 0, usage(command + " PLACE PORT")
}

// echo serves TCP and UDP on a port of all addresses until the script ends.
func echo(run *Run, args []string) error {
	name, port, err := atPort("echo", args)
	if err != nil {
		return err
	}
	place, err := run.Place(name)
	if err != nil {
		return err
	}
	_, err = place.Echo(run.ctx, netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	return err
}

// web says by HTTP who serves whom.
func web(run *Run, args []string) error {
	name, port, err := atPort("web", args)
	if err != nil {
		return err
	}
	place, err := run.Place(name)
	if err != nil {
		return err
	}
	listener, err := place.Listen(run.ctx, "tcp", net.JoinHostPort("::", strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s answers %s\n", name, from)
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	run.deferred = append(run.deferred, func() error {
		err := server.Close()
		if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		return err
	})
	return nil
}

// ask sends bytes to an echo service and wants them back.
func ask(run *Run, args []string) error {
	if len(args) != 3 || reachSizes[args[1]] == 0 {
		return usage("ask PLACE tcp|udp ADDRESS:PORT")
	}
	place, err := run.Place(args[0])
	if err != nil {
		return err
	}
	to, err := netip.ParseAddrPort(args[2])
	if err != nil {
		return usage("ask PLACE tcp|udp ADDRESS:PORT")
	}
	return exchange(run.ctx, place, args[1], to)
}
