package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/weft-net/weft/control/state"
)

// legacyIfName is the interface of an attachment that flannel's plugin saved:
// its files are named by the container alone, and hold the last attachment.
const legacyIfName = "eth0"

// attachment is one interface of one container on one network.
type attachment struct{ network, container, ifName string }

// separator cannot be in the names of networks and containers.
const separator = "@"

// file is the base name of the attachment's file.
func (a attachment) file() string {
	return a.network + separator + a.container + separator + a.ifName
}

// parseFile reads what file wrote. Anything else is false.
func parseFile(name string) (attachment, bool) {
	parts := strings.SplitN(name, separator, 3)
	if len(parts) != 3 || strings.HasPrefix(name, ".") {
		return attachment{}, false
	}
	return attachment{network: parts[0], container: parts[1], ifName: parts[2]}, true
}

// saved is an attachment's delegate as it was last called for.
type saved struct {
	attachment
	delegated
	path    string
	corrupt error // the file has no usable content
}

// store keeps one file per attachment: the delegate's configuration, so that
// DEL undoes what ADD did even when configuration and lease have changed.
type store struct{ dir string }

// save writes the file before the delegate is called.
func (s store) save(a attachment, d delegated) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	return state.WriteFile(filepath.Join(s.dir, a.file()), d.stdin, 0o600)
}

// load finds the file of a, or that of flannel's plugin for the same network.
// The error wraps fs.ErrNotExist where there is none.
func (s store) load(a attachment) (saved, error) {
	found, err := s.read(a, a.file())
	if !errors.Is(err, fs.ErrNotExist) {
		return found, err
	}
	found, err = s.read(a, a.container)
	if err == nil && found.network != a.network {
		return saved{}, fs.ErrNotExist
	}
	return found, err
}

// read reads one file. The network is taken from the content where there is any.
func (s store) read(a attachment, name string) (saved, error) {
	found := saved{attachment: a, path: filepath.Join(s.dir, name)}
	data, err := os.ReadFile(found.path)
	if err != nil {
		return saved{}, err
	}
	d, network, err := decodeSaved(data)
	if err != nil {
		found.corrupt = fmt.Errorf("%s: %w", found.path, err)
		return found, nil
	}
	found.delegated, found.network = d, network
	return found, nil
}

// list returns all attachments of a network, those of flannel's plugin included.
func (s store) list(network string) (out []saved, err error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		a, ok := parseFile(entry.Name())
		if !ok {
			a = attachment{container: entry.Name(), ifName: legacyIfName}
		}
		if !entry.Type().IsRegular() || strings.HasPrefix(entry.Name(), ".") || ok && a.network != network {
			continue
		}
		found, err := s.read(a, entry.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // a DEL was faster
		}
		if err != nil {
			return nil, err
		}
		if found.network == network {
			out = append(out, found)
		}
	}
	return out, nil
}

// remove deletes the file and what a killed save left of it.
func (s store) remove(found saved) error {
	if err := os.Remove(found.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.sweep(found.attachment)
}

// sweep deletes what killed saves of a left. They are hidden files with the
// name in front.
func (s store) sweep(a attachment) error {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "."+a.file()+".") {
			err = errors.Join(err, os.Remove(filepath.Join(s.dir, entry.Name())))
		}
	}
	return err
}
