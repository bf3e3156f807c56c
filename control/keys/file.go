package keys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/weft-net/weft/control/state"
	"github.com/weft-net/weft/tunnel"
)

// The file says what it is in its first line, and then has one word and one
// value a line:
//
//	weft-wireguard-keys 1
//	current (44 characters)
//	next (44 characters)
//	since 2026-11-29T01:12:31Z
//
// with next while a key is announced, and previous after the switch. Flannel's
// form, a key and nothing else, is read as well, and stays until a rotation.
const (
	fileType    = "weft-wireguard-keys "
	fileVersion = "1"
	maxFile     = 4 << 10 // bytes
)

var otherNames = map[Phase]string{Announced: "next", Switched: "previous"}

func (k Keys) text() []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s%s\ncurrent %s\n", fileType, fileVersion, k.Current.Text())
	if name := otherNames[k.Phase]; name != "" {
		fmt.Fprintf(&out, "%s %s\n", name, k.Other.Text())
	}
	if !k.Since.IsZero() {
		fmt.Fprintf(&out, "since %s\n", k.Since.UTC().Format(time.RFC3339))
	}
	return out.Bytes()
}

// parse reads either form. Of weft's only what text writes is taken: nothing
// that is half there, or there twice, passes for a key. Errors tell nothing of
// the content.
func parse(data []byte) (Keys, error) {
	if len(data) > maxFile {
		return Keys{}, fmt.Errorf("more than %d bytes", maxFile)
	}
	lines := strings.Split(string(data), "\n")
	version, tagged := strings.CutPrefix(lines[0], fileType)
	if !tagged {
		key, err := tunnel.ParseSecretKey(strings.TrimSpace(string(data)))
		return Keys{Current: key}, err
	}
	if version != fileVersion {
		return Keys{}, errors.New("written by another version of weft: run that one")
	}
	var keys Keys
	for i, line := range lines[1:] {
		name, value, _ := strings.Cut(line, " ")
		var err error
		switch name {
		case "current":
			keys.Current, err = tunnel.ParseSecretKey(value)
		case otherNames[Announced]:
			keys.Phase = Announced
			keys.Other, err = tunnel.ParseSecretKey(value)
		case otherNames[Switched]:
			keys.Phase = Switched
			keys.Other, err = tunnel.ParseSecretKey(value)
		case "since":
			if keys.Since, err = time.Parse(time.RFC3339, value); err != nil {
				err = errors.New("want a time, as in 2026-11-29T01:12:31Z")
			}
		}
		if err != nil {
			return Keys{}, fmt.Errorf("line %d: %s: %w", i+2, name, err)
		}
	}
	if err := keys.check(); err != nil {
		return Keys{}, err
	}
	if !bytes.Equal(keys.text(), data) {
		return Keys{}, errors.New("not in the form that weft writes")
	}
	return keys, nil
}

// Load reads the key file at path. That there is none is an error that wraps
// fs.ErrNotExist; every other error says what to do.
func Load(path string) (Keys, error) {
	data, err := readSecret(path)
	if err != nil {
		return Keys{}, err
	}
	keys, err := parse(data)
	if err != nil {
		return Keys{}, fmt.Errorf("key file %s cannot be used: %w; put the right one there, or remove it to make this host a new one to its peers", path, err)
	}
	return keys, nil
}

// readSecret reads a file that must be nobody else's to read.
func readSecret(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("look for the key file: %w", err)
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return nil, fmt.Errorf("key file %s is a symbolic link: put the file itself there, or name the one it leads to", path)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("key file %s is no file: move it away, or name another", path)
	case exposed(info.Mode()):
		return nil, fmt.Errorf("key file %s can be read or written by others (mode %04o): chmod 600 %[1]s, and remove it if they may have read it", path, info.Mode().Perm())
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read key file: %w: run as its owner", err)
	}
	defer file.Close()
	opened, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	if !os.SameFile(info, opened) {
		return nil, fmt.Errorf("key file %s was replaced while it was read: try again", path)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read key file %s: %w", path, err)
	}
	return data, nil
}

// LoadOrCreate reads the key file at path, or makes one with a new key where
// there is none, in a directory of mode 0700 if that is missing too. Of several
// processes that do it at once, all return the same key.
func LoadOrCreate(path string, now time.Time) (keys Keys, created bool, err error) {
	keys, err = Load(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return keys, false, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return Keys{}, false, fmt.Errorf("make the directory of key file %s: %w", path, err)
	}
	keys = New(now)
	err = state.CreateFile(path, keys.text(), 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		keys, err = Load(path)
		return keys, false, err
	case err != nil:
		return Keys{}, false, fmt.Errorf("make key file %s: %w", path, err)
	}
	// As it will be read, to the second.
	keys, err = Load(path)
	return keys, true, err
}

// Replace puts want into the key file at path, in the place of have: if the file
// says something else by now, that is an error and stays.
func Replace(path string, have, want Keys) error {
	if err := want.check(); err != nil {
		return fmt.Errorf("replace key file %s: %w", path, err)
	}
	found, err := Load(path)
	if err != nil {
		return fmt.Errorf("replace key file: %w", err)
	}
	if !bytes.Equal(found.text(), have.text()) {
		return fmt.Errorf("replace key file %s: it is not what it was when it was read: restart weft to read it again", path)
	}
	if err := state.WriteFile(path, want.text(), 0o600); err != nil {
		return fmt.Errorf("replace key file %s: %w", path, err)
	}
	return nil
}

// LoadPreshared reads a pre-shared key, as `wg genpsk` writes it, that every host
// of the network has a file of. Unlike a key file it may be a symbolic link, as
// those in a volume of a Kubernetes Secret are.
func LoadPreshared(path string) (tunnel.SecretKey, error) {
	file, err := os.Open(path)
	if err != nil {
		return tunnel.SecretKey{}, fmt.Errorf("read pre-shared key: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return tunnel.SecretKey{}, fmt.Errorf("read pre-shared key: %w", err)
	case !info.Mode().IsRegular():
		return tunnel.SecretKey{}, fmt.Errorf("pre-shared key %s is no file", path)
	case exposed(info.Mode()):
		return tunnel.SecretKey{}, fmt.Errorf("pre-shared key %s can be read or written by others (mode %04o): chmod 600 %[1]s, or defaultMode: 0400 in the Secret's volume",
			path, info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return tunnel.SecretKey{}, fmt.Errorf("read pre-shared key %s: %w", path, err)
	}
	key, err := tunnel.ParseSecretKey(strings.TrimSpace(string(data)))
	if err != nil {
		return tunnel.SecretKey{}, fmt.Errorf("pre-shared key %s: %w; `wg genpsk` makes one", path, err)
	}
	return key, nil
}
