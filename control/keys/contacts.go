package keys

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/weft-net/weft/control/state"
	"github.com/weft-net/weft/tunnel"
)

// Contact is a peer that this host has talked with. After a restart the peer
// still sends by a session of which this host knows nothing; a greeting ends that
// at once.
type Contact struct {
	Key      tunnel.PublicKey `json:"key"`
	Endpoint netip.AddrPort   `json:"endpoint"`
	Seen     time.Time        `json:"seen"`
}

// contactsFile is the file as written.
type contactsFile struct {
	Version  int       `json:"version"`
	Contacts []Contact `json:"contacts"`
}

const (
	contactsVersion = 1
	maxContacts     = 4096
	maxContactsFile = 1 << 20 // bytes
)

// SaveContacts replaces the file at path. Of too many, those seen last are kept.
func SaveContacts(path string, contacts []Contact) error {
	contacts = slices.Clone(contacts)
	slices.SortStableFunc(contacts, func(x, y Contact) int { return y.Seen.Compare(x.Seen) })
	contacts = contacts[:min(len(contacts), maxContacts)]
	for i := range contacts {
		contacts[i].Seen = contacts[i].Seen.UTC().Truncate(time.Second)
	}
	data, err := json.Marshal(contactsFile{Version: contactsVersion, Contacts: contacts})
	if err == nil {
		err = state.WriteFile(path, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write contacts %s: %w", path, err)
	}
	return nil
}

// LoadContacts reads the file at path, of which it is no error that it is not
// there. What it says is a hint: with an error there are no contacts, and
// nothing is lost but time.
func LoadContacts(path string) ([]Contact, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read contacts: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxContactsFile+1))
	if err != nil {
		return nil, fmt.Errorf("read contacts %s: %w", path, err)
	}
	contacts, err := parseContacts(data)
	if err != nil {
		return nil, fmt.Errorf("read contacts %s: %w", path, err)
	}
	return contacts, nil
}

func parseContacts(data []byte) ([]Contact, error) {
	if len(data) > maxContactsFile {
		return nil, fmt.Errorf("more than %d bytes", maxContactsFile)
	}
	var file contactsFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, errors.New("not the JSON that weft writes") // its own error may repeat the text at any length
	}
	if file.Version != contactsVersion {
		return nil, fmt.Errorf("version is %d, want %d", file.Version, contactsVersion)
	}
	if len(file.Contacts) > maxContacts {
		return nil, fmt.Errorf("%d contacts, at most %d are allowed", len(file.Contacts), maxContacts)
	}
	for i, contact := range file.Contacts {
		addr := contact.Endpoint.Addr()
		if contact.Key == (tunnel.PublicKey{}) || contact.Endpoint.Port() == 0 || !addr.IsGlobalUnicast() && !addr.IsLinkLocalUnicast() || addr.Is4In6() {
			return nil, fmt.Errorf("contact %d is no peer that could be reached", i)
		}
	}
	return file.Contacts, nil
}
