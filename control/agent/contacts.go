package agent

import (
	"slices"
	"time"

	"github.com/weft-net/weft/control/keys"
	"github.com/weft-net/weft/tunnel/wireguard"
)

// contacts are the peers that this host talks with by WireGuard, noted for the
// agent that comes after this one: they still send by sessions that end with it,
// and where they are may be known from nothing else.
type contacts struct {
	agent    *Agent
	sessions *wireguard.Host
	noted    []wireguard.Contact
}

// noteEvery is how often that is written down, if it has changed.
const noteEvery = 5 * time.Second

// greet has handshakes begun with those of before. They are only a hint.
func (c *contacts) greet() {
	before, err := keys.LoadContacts(c.agent.WireGuard.ContactsFile)
	if err != nil {
		c.agent.Logger.Warn("going on without the peers of before", "err", err)
	}
	greeted := make([]wireguard.Contact, 0, len(before))
	for _, contact := range before {
		greeted = append(greeted, wireguard.Contact{Key: contact.Key, Endpoint: contact.Endpoint})
	}
	c.sessions.Greet(greeted...)
}

// keep notes them from now on until the function that it returns is called. While
// there are none the file stays as it is: they may be about to be greeted.
func (c *contacts) keep() (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(noteEvery)
		defer ticker.Stop()
		for {
			select {
			case <-end:
				c.note()
				return
			case <-ticker.C:
				c.note()
			}
		}
	}()
	return func() { close(end); <-ended }
}

func (c *contacts) note() {
	active := c.sessions.Active()
	if len(active) == 0 || slices.Equal(active, c.noted) {
		return
	}
	now, list := time.Now(), make([]keys.Contact, 0, len(active))
	for _, contact := range active {
		list = append(list, keys.Contact{Key: contact.Key, Endpoint: contact.Endpoint, Seen: now})
	}
	if err := keys.SaveContacts(c.agent.WireGuard.ContactsFile, list); err != nil {
		c.agent.Logger.Debug("note active peers", "err", err)
		return
	}
	c.noted = active
}
