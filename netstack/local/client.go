package local

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Client asks the agent.
type Client struct {
	// Dial connects to the agent's local socket.
	Dial func(ctx context.Context) (net.Conn, error)
}

// ErrRefused means that the agent would not or could not do what it was asked to.
var ErrRefused = errors.New("refused by the agent")

// ErrOwnStack means that the agent has no way into the overlay to offer, because
// the system's own network stack has one.
var ErrOwnStack = fmt.Errorf("%w: this host has a device, and its own network stack reaches the overlay", ErrRefused)

// DialContext dials "host:port" in the overlay; network is "tcp" or "udp".
// A connection for UDP reads and writes one datagram at a time.
func (c *Client) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := c.Dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	upgraded, err := upgrade(conn, network, address)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("dial %s %s: %w", network, address, err)
	}
	return upgraded, nil
}

func upgrade(conn net.Conn, network, address string) (net.Conn, error) {
	form := url.Values{"network": {network}, "address": {address}}.Encode()
	request := fmt.Sprintf("POST /v1/%s HTTP/1.1\r\nHost: weft\r\nConnection: Upgrade\r\nUpgrade: %s\r\n"+
		"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", dialPath, upgradeTo, len(form), form)
	if _, err := io.WriteString(conn, request); err != nil {
		return nil, err
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		return nil, refusal(response)
	}
	var joined net.Conn = &bufferedConn{Conn: conn, reader: reader}
	if network == "udp" {
		joined = newFrames(joined)
	}
	return joined, nil
}

// refusal is the error that an answer other than the wanted one says.
func refusal(response *http.Response) error {
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	if err != nil {
		return err
	}
	if response.StatusCode == http.StatusNotFound {
		return ErrOwnStack
	}
	return fmt.Errorf("%w: %s", ErrRefused, strings.TrimSpace(string(text)))
}

// Ping sends one echo request of size bytes of data to a host, by address or name.
func (c *Client) Ping(ctx context.Context, host string, size int) (Pong, error) {
	var pong Pong
	err := c.Call(ctx, http.MethodPost, pingPath, url.Values{"host": {host}, "size": {strconv.Itoa(size)}}, &pong)
	return pong, err
}

// Way says how programs reach the overlay.
func (c *Client) Way(ctx context.Context) (Way, error) {
	var way Way
	err := c.Call(ctx, http.MethodGet, wayPath, nil, &way)
	return way, err
}

// Call makes one request of a resource below /v1/ and decodes the JSON that
// answers it into answer, unless that is nil.
func (c *Client) Call(ctx context.Context, method, path string, form url.Values, answer any) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dial(ctx) },
	}}
	target := "http://weft/v1/" + path
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader(form.Encode())
	} else if len(form) > 0 {
		target += "?" + form.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return fmt.Errorf("build request: %w", err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("ask the agent: %w (is it running?)", err)
	}
	if response.StatusCode != http.StatusOK {
		return refusal(response)
	}
	defer response.Body.Close()
	if answer == nil {
		return nil
	}
	if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	return nil
}
