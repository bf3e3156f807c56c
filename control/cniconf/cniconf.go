// Package cniconf puts CNI plugins and their configuration where the container
// runtime looks for them. It must never run a plugin, and never replace a
// plugin that somebody else installed.
package cniconf

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/weft-net/weft/control/state"
)

// DefaultName is the configuration's file name. Runtimes use the file that
// sorts first.
const DefaultName = "10-weft.conflist"

// Config says what to install, and where.
type Config struct {
	From   string // directory of plugins
	BinDir string // where plugins go
	// Conf is the configuration list, and ConfDir where it goes as Name
	// (DefaultName if empty). Empty Conf: none is installed.
	Conf    string
	ConfDir string
	Name    string
	Logger  *slog.Logger
}

// record names the file in BinDir that holds what was installed from here, in
// the form of sha256sum(1).
const record = ".weft-installed"

// ours is what names of weft's own plugins begin with: those are replaced
// whatever they are.
const ours = "weft"

// The modes of what is installed, whatever those of the sources are: a plugin
// must never be setuid.
const (
	pluginMode fs.FileMode = 0o755
	fileMode   fs.FileMode = 0o644
)

// Install copies the plugins, then the configuration, each in one step: a
// reader finds the old file or the new one. What is there already is left
// alone. It may be repeated.
func Install(cfg Config) error {
	if cfg.Name == "" {
		cfg.Name = DefaultName
	}
	if filepath.Base(cfg.Name) != cfg.Name {
		return fmt.Errorf("install CNI configuration as %q: want a file name without directories", cfg.Name)
	}
	var conf []byte
	var types []string
	if cfg.Conf != "" {
		var err error
		if conf, err = os.ReadFile(cfg.Conf); err != nil {
			return fmt.Errorf("read CNI configuration: %w", err)
		}
		if types, err = pluginTypes(conf); err != nil {
			return fmt.Errorf("CNI configuration %s: %w", cfg.Conf, err)
		}
	}
	if err := installPlugins(cfg); err != nil {
		return err
	}
	if cfg.Conf == "" {
		return nil
	}
	for _, name := range types {
		if info, err := os.Stat(filepath.Join(cfg.BinDir, name)); err != nil || !info.Mode().IsRegular() {
			return fmt.Errorf("CNI configuration %s names the plugin %q, which is neither in %s nor in %s: install it there, or take it out",
				cfg.Conf, name, cfg.From, cfg.BinDir)
		}
	}
	warnShadowed(cfg)
	changed, err := replace(filepath.Join(cfg.ConfDir, cfg.Name), conf, fileMode)
	if err != nil {
		return fmt.Errorf("install CNI configuration: %w", err)
	}
	if changed {
		cfg.Logger.Info("CNI configuration installed", "file", filepath.Join(cfg.ConfDir, cfg.Name))
	}
	return nil
}

// pluginName is what the CNI specification and good sense allow: the runtime
// makes a path of it.
var pluginName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// pluginTypes checks a network configuration list (CNI specification 1.1,
// section 1) and returns the plugins it names.
func pluginTypes(conf []byte) ([]string, error) {
	type plugin struct {
		Type     string
		Delegate struct{ Type string }
	}
	var list struct {
		CNIVersion string
		Name       string
		Plugins    []plugin
	}
	if err := json.Unmarshal(conf, &list); err != nil {
		return nil, fmt.Errorf("not a JSON object of the expected form: %w", err)
	}
	switch {
	case list.CNIVersion == "":
		return nil, errors.New(`cniVersion is missing; allowed: a version, as in "1.0.0"`)
	case !pluginName.MatchString(list.Name):
		return nil, fmt.Errorf("name is %q; allowed: letters, digits, _ . -", list.Name)
	case len(list.Plugins) == 0:
		return nil, errors.New("plugins is empty; want a list of plugins: this must be a configuration list, not a single plugin's")
	}
	var types []string
	for i, p := range list.Plugins {
		if !pluginName.MatchString(p.Type) {
			return nil, fmt.Errorf("plugins[%d].type is %q; allowed: letters, digits, _ . -", i, p.Type)
		}
		types = append(types, p.Type)
		if p.Delegate.Type == "" {
			continue
		}
		if !pluginName.MatchString(p.Delegate.Type) {
			return nil, fmt.Errorf("plugins[%d].delegate.type is %q; allowed: letters, digits, _ . -", i, p.Delegate.Type)
		}
		types = append(types, p.Delegate.Type)
	}
	return types, nil
}

// installPlugins copies every plugin, and records which ones are from here.
func installPlugins(cfg Config) error {
	entries, err := os.ReadDir(cfg.From)
	if err != nil {
		return fmt.Errorf("list plugins: %w", err)
	}
	installed, err := readSums(cfg.BinDir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		if !entry.Type().IsRegular() || !pluginName.MatchString(name) {
			return fmt.Errorf("install plugins: %s is not a plugin", filepath.Join(cfg.From, name))
		}
		data, err := os.ReadFile(filepath.Join(cfg.From, name))
		if err != nil {
			return fmt.Errorf("read plugin: %w", err)
		}
		if err := installPlugin(cfg, name, data, installed); err != nil {
			return fmt.Errorf("install plugin %s: %w", name, err)
		}
	}
	return nil
}

// installPlugin puts one plugin into BinDir, unless what is there is somebody
// else's, and keeps installed and its file up to date.
func installPlugin(cfg Config, name string, data []byte, installed sums) error {
	target := filepath.Join(cfg.BinDir, name)
	want := sum(data)
	have, exists, err := sumOf(target)
	if err != nil {
		return err
	}
	switch {
	case exists && have == want:
		_, err := replace(target, data, pluginMode) // for the mode
		return err
	case exists && !slices.Contains(installed[name], have) && !strings.HasPrefix(name, ours):
		cfg.Logger.Info("CNI plugin is somebody else's and stays", "file", target)
		return nil
	}
	// Both sums are ours until the new file is in place, wherever a crash comes.
	installed[name] = append(installed[name], want)
	if err := installed.write(cfg.BinDir); err != nil {
		return err
	}
	if _, err := replace(target, data, pluginMode); err != nil {
		return err
	}
	cfg.Logger.Info("CNI plugin installed", "file", target)
	installed[name] = []string{want}
	return installed.write(cfg.BinDir)
}

// sumOf returns the sum of a regular file; of anything else, which cannot be
// ours, it is empty.
func sumOf(path string) (hash string, exists bool, err error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	if !info.Mode().IsRegular() {
		return "", true, nil
	}
	data, err := os.ReadFile(path)
	return sum(data), true, err
}

func sum(data []byte) string {
	hash := sha256.Sum256(data)
	return hex.EncodeToString(hash[:])
}

// sums are those of the plugins installed from here, by name.
type sums map[string][]string

// readSums reads the record. A line that is none is dropped: the worst is a
// plugin that stays as it is.
func readSums(binDir string) (sums, error) {
	data, err := os.ReadFile(filepath.Join(binDir, record))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read record of installed plugins: %w", err)
	}
	installed := sums{}
	for line := range strings.Lines(string(data)) {
		if hash, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  "); ok {
			installed[name] = append(installed[name], hash)
		}
	}
	return installed, nil
}

func (s sums) write(binDir string) error {
	var text []byte
	for _, name := range slices.Sorted(maps.Keys(s)) {
		for _, hash := range s[name] {
			text = fmt.Appendf(text, "%s  %s\n", hash, name)
		}
	}
	_, err := replace(filepath.Join(binDir, record), text, fileMode)
	return err
}

// warnShadowed tells of configurations the runtime will prefer to ours.
func warnShadowed(cfg Config) {
	entries, err := os.ReadDir(cfg.ConfDir)
	if err != nil {
		return // writing there will fail with the reason
	}
	for _, entry := range entries {
		switch filepath.Ext(entry.Name()) {
		case ".conf", ".conflist", ".json":
			if entry.Name() < cfg.Name {
				cfg.Logger.Warn("another CNI configuration comes first: the runtime will use it until it is removed",
					"file", filepath.Join(cfg.ConfDir, entry.Name()), "ours", cfg.Name)
			}
		}
	}
}

// replace writes a file in one step, unless it is there already just so.
func replace(path string, data []byte, mode fs.FileMode) (changed bool, err error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Mode() == mode {
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
			return false, nil
		}
	}
	return true, state.WriteFile(path, data, mode)
}
