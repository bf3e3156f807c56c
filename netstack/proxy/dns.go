package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// dnsTimeout is how long one server is waited for once, dnsRounds how often
	// each is asked.
	dnsTimeout = 2 * time.Second
	dnsRounds  = 2
)

type dialFunc func(ctx context.Context, protocol string, to netip.AddrPort) (net.Conn, error)

// answer is what a DNS server said to one question.
type answer struct {
	addrs []netip.Addr
	alias string // where the aliases lead, if there is no address
	ttl   time.Duration
	// truncated: the rest has to be fetched by TCP.
	truncated bool
}

// errNotAnswer is a message that answers something else: a forgery, or late.
var errNotAnswer = errors.New("the answer is to another question")

// ask puts one question to the servers in turn until one answers it.
func (r *resolver) ask(ctx context.Context, servers []netip.AddrPort, name string, qtype dnsmessage.Type) (answer, error) {
	failed := make(failures, len(servers))
	for range dnsRounds {
		for i, server := range servers {
			a, err := r.askServer(ctx, server, name, qtype)
			if err == nil {
				return a, nil
			}
			failed[i] = fmt.Errorf("DNS server %s %w: %w", server, ErrNoAnswer, err)
			if ctx.Err() != nil {
				return answer{}, failed[i]
			}
		}
	}
	return answer{}, failed
}

// askServer asks one server by UDP, and by TCP if the answer was truncated.
func (r *resolver) askServer(ctx context.Context, server netip.AddrPort, name string, qtype dnsmessage.Type) (answer, error) {
	a, err := r.exchange(ctx, UDP, server, name, qtype)
	if err == nil && a.truncated {
		return r.exchange(ctx, TCP, server, name, qtype)
	}
	return a, err
}

func (r *resolver) exchange(ctx context.Context, protocol string, server netip.AddrPort, name string, qtype dnsmessage.Type) (answer, error) {
	id := uint16(rand.Uint32())
	query, question, err := packQuestion(id, name, qtype)
	if err != nil {
		return answer{}, err
	}
	deadline := time.Now().Add(dnsTimeout)
	dialCtx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	conn, err := r.dial(dialCtx, protocol, server)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return answer{}, err
	}
	defer closeOn(ctx, conn)()
	if protocol == TCP {
		return askStream(conn, query, id, question)
	}
	if _, err := conn.Write(query); err != nil {
		return answer{}, err
	}
	a, err := awaitDatagram(conn, id, question)
	if watched, ok := conn.(*watchedConn); ok && err != nil {
		watched.failed() // silence is a sign too, here: the next try goes to another backend
	}
	return a, err
}

// awaitDatagram waits for the answer and passes over everything else: anybody
// may send datagrams.
func awaitDatagram(conn net.Conn, id uint16, question dnsmessage.Question) (answer, error) {
	buffer := make([]byte, smallBuffer)
	var other error
	for {
		n, err := conn.Read(buffer)
		if err != nil && other != nil {
			return answer{}, other
		}
		if err != nil {
			return answer{}, err
		}
		a, err := parseAnswer(buffer[:n], id, question)
		if !errors.Is(err, errNotAnswer) {
			return a, err
		}
		other = err
	}
}

// askStream asks over TCP, where messages have their length in front (RFC
// 1035, 4.2.2).
func askStream(conn net.Conn, query []byte, id uint16, question dnsmessage.Question) (answer, error) {
	message := binary.BigEndian.AppendUint16(nil, uint16(len(query)))
	if _, err := conn.Write(append(message, query...)); err != nil {
		return answer{}, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return answer{}, err
	}
	message = make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, message); err != nil {
		return answer{}, err
	}
	return parseAnswer(message, id, question)
}

func packQuestion(id uint16, name string, qtype dnsmessage.Type) ([]byte, dnsmessage.Question, error) {
	packed, err := dnsmessage.NewName(name)
	if err != nil {
		return nil, dnsmessage.Question{}, fmt.Errorf("ask for %s: %w", name, err)
	}
	question := dnsmessage.Question{Name: packed, Type: qtype, Class: dnsmessage.ClassINET}
	message := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{question},
	}
	query, err := message.Pack()
	return query, question, err
}

// parseAnswer reads a DNS message as the answer to question. It is
// errNotAnswer if the message answers anything else. A name that does not
// exist is an answer without addresses.
func parseAnswer(message []byte, id uint16, question dnsmessage.Question) (answer, error) {
	var parser dnsmessage.Parser
	header, err := parser.Start(message)
	if err != nil || !header.Response || header.ID != id {
		return answer{}, errNotAnswer
	}
	asked, err := parser.AllQuestions()
	if err != nil || len(asked) != 1 || asked[0].Type != question.Type || asked[0].Class != question.Class ||
		!strings.EqualFold(asked[0].Name.String(), question.Name.String()) {
		return answer{}, errNotAnswer
	}
	switch {
	case header.Truncated:
		return answer{truncated: true}, nil
	case header.RCode == dnsmessage.RCodeNameError:
		return answer{ttl: noNameTTL}, nil
	case header.RCode != dnsmessage.RCodeSuccess:
		return answer{}, fmt.Errorf("it says %s", strings.TrimPrefix(header.RCode.String(), "RCode"))
	}
	records, err := readRecords(&parser)
	if err != nil {
		return answer{}, fmt.Errorf("read answer: %w", err)
	}
	return records.follow(strings.ToLower(question.Name.String()))
}

// records are the parts of an answer that matter, by lower-case owner.
type records struct {
	addrs   map[string][]netip.Addr
	aliases map[string]string
	ttl     time.Duration
}

func readRecords(parser *dnsmessage.Parser) (records, error) {
	found := records{addrs: map[string][]netip.Addr{}, aliases: map[string]string{}, ttl: maxTTL}
	for {
		header, err := parser.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return found, nil
		}
		if err != nil {
			return records{}, err
		}
		if err := found.read(parser, header); err != nil {
			return records{}, err
		}
	}
}

func (r *records) read(parser *dnsmessage.Parser, header dnsmessage.ResourceHeader) error {
	owner := strings.ToLower(header.Name.String())
	switch {
	case header.Class != dnsmessage.ClassINET:
		return parser.SkipAnswer()
	case header.Type == dnsmessage.TypeA:
		resource, err := parser.AResource()
		if err != nil {
			return err
		}
		r.addrs[owner] = append(r.addrs[owner], netip.AddrFrom4(resource.A))
	case header.Type == dnsmessage.TypeAAAA:
		resource, err := parser.AAAAResource()
		if err != nil {
			return err
		}
		r.addrs[owner] = append(r.addrs[owner], netip.AddrFrom16(resource.AAAA).Unmap())
	case header.Type == dnsmessage.TypeCNAME:
		resource, err := parser.CNAMEResource()
		if err != nil {
			return err
		}
		r.aliases[owner] = strings.ToLower(resource.CNAME.String())
	default:
		return parser.SkipAnswer()
	}
	r.ttl = min(r.ttl, time.Duration(header.TTL)*time.Second)
	return nil
}

// follow goes from name along the aliases to addresses.
func (r *records) follow(name string) (answer, error) {
	found := answer{ttl: r.ttl}
	for range maxAliases {
		if addrs := r.addrs[name]; len(addrs) > 0 {
			found.addrs = addrs
			return found, nil
		}
		next, ok := r.aliases[name]
		if !ok {
			return found, nil
		}
		name, found.alias = next, next
	}
	return answer{}, fmt.Errorf("more than %d aliases, the last is %s", maxAliases, name)
}
