package script

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

var serveCommands = map[string]Command{
	"echo": echo,
	"ask":  ask,
	"dns":  dns,
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

// dns serves names over UDP until the script ends.
func dns(run *Run, args []string) error {
	const form = "dns PLACE NAME=ADDRESS..."
	if len(args) < 2 {
		return usage(form)
	}
	place, err := run.Place(args[0])
	if err != nil {
		return err
	}
	names := map[string]netip.Addr{}
	for _, arg := range args[1:] {
		name, text, _ := strings.Cut(arg, "=")
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return usage(form)
		}
		names[strings.ToLower(name)+"."] = addr
	}
	conn, err := place.ListenPacket(run.ctx, "udp", "[::]:53")
	if err != nil {
		return err
	}
	run.deferred = append(run.deferred, conn.Close)
	go func() {
		buffer := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if answer := answerDNS(buffer[:n], names); answer != nil {
				_, _ = conn.WriteTo(answer, from) // a lost answer is the asker's to notice
			}
		}
	}()
	return nil
}

// answerDNS answers a query, or returns nil for what is none.
func answerDNS(query []byte, names map[string]netip.Addr) []byte {
	var message dnsmessage.Message
	if message.Unpack(query) != nil || message.Response || len(message.Questions) != 1 {
		return nil
	}
	question := message.Questions[0]
	addr, known := names[strings.ToLower(question.Name.String())]
	answer := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: message.ID, Response: true, Authoritative: true},
		Questions: message.Questions,
	}
	header := dnsmessage.ResourceHeader{Name: question.Name, Type: question.Type, Class: question.Class, TTL: 5}
	switch {
	case !known:
		answer.RCode = dnsmessage.RCodeNameError
	case question.Type == dnsmessage.TypeA && addr.Is4():
		answer.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: addr.As4()}}}
	case question.Type == dnsmessage.TypeAAAA && addr.Is6():
		answer.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}}}
	}
	packed, err := answer.Pack()
	if err != nil {
		return nil
	}
	return packed
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
