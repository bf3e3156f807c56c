package keys

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/tunnel"
)

func contact(n int, seen time.Time) Contact {
	return Contact{
		Key:      tunnel.PublicKey{byte(n), byte(n >> 8), 1},
		Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 51820), Seen: seen,
	}
}

func TestContacts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "contacts")
	if have, err := LoadContacts(path); err != nil || have != nil {
		t.Fatalf("have %v, %v", have, err)
	}
	six := contact(3, later(2))
	six.Endpoint = netip.MustParseAddrPort("[fd77::3]:51821")
	given := []Contact{contact(1, later(1)), contact(2, later(3).Add(time.Millisecond)), six}
	before := append([]Contact(nil), given...)
	if err := SaveContacts(path, given); err != nil {
		t.Fatal(err)
	}
	have, err := LoadContacts(path)
	if want := []Contact{contact(2, later(3)), six, contact(1, later(1))}; err != nil || !reflect.DeepEqual(have, want) {
		t.Errorf("have %v, %v, want %v", have, err, want)
	}
	if !reflect.DeepEqual(given, before) {
		t.Error("the argument was changed")
	}
	if err := SaveContacts(path, nil); err != nil {
		t.Fatal(err)
	}
	if have, err := LoadContacts(path); err != nil || len(have) != 0 {
		t.Errorf("have %v, %v", have, err)
	}
}

// Those seen last are kept, and what is kept can be read.
func TestManyContacts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "contacts")
	var all []Contact
	for i := range 2 * maxContacts {
		c := contact(i, start.Add(time.Duration(i)*time.Second))
		c.Endpoint = netip.MustParseAddrPort(fmt.Sprintf("[fd77:7777:7777:7777:7777:7777:7777:%x]:51821", 0x1000+i%0xe000))
		all = append(all, c)
	}
	if err := SaveContacts(path, all); err != nil {
		t.Fatal(err)
	}
	have, err := LoadContacts(path)
	if err != nil || len(have) != maxContacts || have[0] != all[len(all)-1] {
		t.Errorf("have %d, %v", len(have), err)
	}
}

func TestBadContacts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "contacts")
	key := tunnel.PublicKey{1}.String()
	one := func(key, endpoint, seen string) string {
		return fmt.Sprintf(`{"version":1,"contacts":[{"key":%q,"endpoint":%q,"seen":%q}]}`, key, endpoint, seen)
	}
	for name, text := range map[string]string{
		"empty":          "",
		"zeros":          strings.Repeat("\x00", 100),
		"half":           one(key, "192.0.2.1:1", "2026-11-29T01:12:31Z")[:60],
		"more":           one(key, "192.0.2.1:1", "2026-11-29T01:12:31Z") + "}",
		"an array":       "[]",
		"no version":     `{"contacts":[]}`,
		"later":          `{"version":2,"contacts":[]}`,
		"no key":         `{"version":1,"contacts":[{"endpoint":"192.0.2.1:1"}]}`,
		"a bad key":      one(key[1:], "192.0.2.1:1", "2026-11-29T01:12:31Z"),
		"no endpoint":    fmt.Sprintf(`{"version":1,"contacts":[{"key":%q}]}`, key),
		"a bad endpoint": one(key, "192.0.2.1", "2026-11-29T01:12:31Z"),
		"no port":        one(key, "192.0.2.1:0", "2026-11-29T01:12:31Z"),
		"multicast":      one(key, "224.0.0.1:1", "2026-11-29T01:12:31Z"),
		"mapped":         one(key, "[::ffff:192.0.2.1]:1", "2026-11-29T01:12:31Z"),
		"a bad time":     one(key, "192.0.2.1:1", "yesterday"),
		"too many":       `{"version":1,"contacts":[` + strings.Repeat("{},", maxContacts) + `{}]}`,
		"too long":       `{"version":1,"contacts":[]}` + strings.Repeat(" ", maxContactsFile),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		have, err := LoadContacts(path)
		if err == nil || have != nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: have %v, %v", name, have, err)
		}
	}
}

func FuzzParseContacts(f *testing.F) {
	f.Add([]byte(`{"version":1,"contacts":[{"key":"` + tunnel.PublicKey{1}.String() + `","endpoint":"[fd77::1]:51820","seen":"2026-11-29T01:12:31Z"}]}`))
	f.Add([]byte(`{"version":1,"contacts":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		contacts, err := parseContacts(data)
		if err != nil && (contacts != nil || len(err.Error()) > 100) {
			t.Fatalf("have %v with %v", contacts, err)
		}
		for _, c := range contacts {
			if c.Key == (tunnel.PublicKey{}) || !c.Endpoint.IsValid() || c.Endpoint.Port() == 0 {
				t.Fatalf("have %+v", c)
			}
		}
	})
}
