package keys

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/tunnel"
)

// The test binary plays other processes too: one that makes a key file, and one
// that rotates keys until it is killed.
const roleVariable = "WEFT_KEYS_TEST_ROLE"

func TestMain(m *testing.M) {
	role, path, _ := strings.Cut(os.Getenv(roleVariable), " ")
	switch role {
	case "create":
		keys, created, err := LoadOrCreate(path, start)
		fmt.Println(keys.Public()[0], created, err)
	case "rotate":
		rotate(path)
	default:
		os.Exit(m.Run())
	}
}

func helper(t *testing.T, role, path string) *exec.Cmd {
	command := exec.CommandContext(t.Context(), os.Args[0])
	command.Env = append(os.Environ(), roleVariable+"="+role+" "+path)
	return command
}

// rotate goes on from wherever the file is, and says what it is about to write.
func rotate(path string) {
	for i := 0; ; i++ {
		have, err := Load(path)
		if err != nil {
			fmt.Println(err)
			return
		}
		want, err := step(have, i)
		fmt.Println(want.Public(), err)
		if err := Replace(path, have, want); err != nil {
			fmt.Println(err)
			return
		}
	}
}

// step is the one transition that there is.
func step(have Keys, i int) (Keys, error) {
	switch have.Phase {
	case Announced:
		return have.Switch(later(i))
	case Switched:
		return have.Drop(later(i))
	}
	return have.Announce(later(i))
}

func keyFile(t *testing.T) string { return filepath.Join(t.TempDir(), "weft", "wireguard.keys") }

func TestLoadOrCreate(t *testing.T) {
	path := keyFile(t)
	if _, err := Load(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("have %v", err)
	}
	keys, created, err := LoadOrCreate(path, start)
	if err != nil || !created {
		t.Fatalf("created: %t, %v", created, err)
	}
	again, created, err := LoadOrCreate(path, later(5))
	if err != nil || created || again != keys || !again.Since.Equal(start) {
		t.Errorf("created: %t, %v, %v and %v", created, err, again.Public(), keys.Public())
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// Every step is in the file before it is used, and is gone on from after a
// crash just before and just after it, with what a crash leaves lying about.
func TestCrashAtEveryStep(t *testing.T) {
	path := keyFile(t)
	have, _, err := LoadOrCreate(path, start)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 9 {
		want, err := step(have, i)
		if err != nil {
			t.Fatal(err)
		}
		part := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.%d", filepath.Base(path), i))
		if err := os.WriteFile(part, want.text()[:i*20], 0o600); err != nil {
			t.Fatal(err)
		}
		before, created, err := LoadOrCreate(path, later(99))
		if err != nil || created || !bytes.Equal(before.text(), have.text()) {
			t.Fatalf("step %d: created: %t, %v", i, created, err)
		}
		if err := Replace(path, before, want); err != nil {
			t.Fatal(err)
		}
		after, created, err := LoadOrCreate(path, later(99))
		if err != nil || created || !bytes.Equal(after.text(), want.text()) {
			t.Fatalf("step %d: created: %t, %v", i, created, err)
		}
		have = after
	}
}

// A process that is killed at any moment leaves keys it had before or those it
// was about to have.
func TestKilledWhileRotating(t *testing.T) {
	path := keyFile(t)
	keys, _, err := LoadOrCreate(path, start)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 8 {
		command := helper(t, "rotate", path)
		out, err := command.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		said := []string{fmt.Sprint(keys.Public(), nil)}
		lines := bufio.NewScanner(out)
		for range 1 + round {
			lines.Scan()
			said = append(said, lines.Text())
		}
		if err := command.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			said = append(said, lines.Text())
		}
		_ = command.Wait() // killed
		if keys, err = Load(path); err != nil {
			t.Fatal(err)
		}
		if last := said[len(said)-2:]; !slices.Contains(last, fmt.Sprint(keys.Public(), nil)) {
			t.Fatalf("round %d: have %v, want one of %v", round, keys.Public(), last)
		}
	}
}

func TestRacingProcesses(t *testing.T) {
	path := keyFile(t)
	var commands []*exec.Cmd
	var outs []*bytes.Buffer
	for range 6 {
		command, out := helper(t, "create", path), new(bytes.Buffer)
		command.Stdout, command.Stderr = out, out
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		commands, outs = append(commands, command), append(outs, out)
	}
	made := 0
	said := map[string]bool{}
	for i, command := range commands {
		if err := command.Wait(); err != nil {
			t.Fatalf("%v: %s", err, outs[i])
		}
		key, rest, _ := strings.Cut(strings.TrimSpace(outs[i].String()), " ")
		said[key] = true
		switch rest {
		case "true <nil>":
			made++
		case "false <nil>":
		default:
			t.Errorf("have %s", outs[i])
		}
	}
	keys, err := Load(path)
	if made != 1 || len(said) != 1 || err != nil || !said[keys.Public()[0].String()] {
		t.Errorf("%d made it, they have %v, the file %v, %v", made, said, keys.Public(), err)
	}
}

// Flannel's file is taken over as it is, and is weft's from the first rotation.
func TestFlannelsFile(t *testing.T) {
	key := generate()
	for _, text := range []string{key.Text(), key.Text() + "\n"} {
		path := filepath.Join(t.TempDir(), "wgkey")
		if err := os.WriteFile(path, []byte(text), 0o400); err != nil {
			t.Fatal(err)
		}
		keys, created, err := LoadOrCreate(path, start)
		if err != nil || created || keys != (Keys{Current: key}) {
			t.Fatalf("created: %t, %v", created, err)
		}
		if data, _ := os.ReadFile(path); string(data) != text {
			t.Error("reading it changed it")
		}
		next, err := keys.Announce(later(1))
		if err != nil {
			t.Fatal(err)
		}
		if err := Replace(path, keys, next); err != nil {
			t.Fatal(err)
		}
		if have, err := Load(path); err != nil || have != next {
			t.Errorf("have %v, %v", have.Public(), err)
		}
	}
}

// What cannot be used is an error that names the file and the cure and tells
// nothing of the content, and stays as it is.
func TestBadFiles(t *testing.T) {
	one, two := New(start), New(start)
	good := string(one.text())
	announced := strings.Replace(good, "since", "next "+two.Current.Text()+"\nsince", 1)
	if keys, err := parse([]byte(announced)); err != nil || keys.Phase != Announced {
		t.Fatalf("have %v", err)
	}
	for name, text := range map[string]string{
		"empty":                 "",
		"blank":                 "\n",
		"half a key":            one.Current.Text()[:20],
		"two keys":              one.Current.Text() + "\n" + two.Current.Text() + "\n",
		"a zero key":            strings.Repeat("A", 43) + "=",
		"a public key in hex":   strings.Repeat("0f", 32),
		"zeros":                 strings.Repeat("\x00", len(good)),
		"half a file":           good[:len(good)/2],
		"all but the end":       good[:len(good)-1],
		"more than the end":     good + "\n",
		"the type alone":        fileType + fileVersion + "\n",
		"a later version":       strings.Replace(good, "keys 1", "keys 2", 1),
		"no version":            strings.Replace(good, "keys 1", "keys ", 1),
		"without current":       strings.Replace(good, "current", "courant", 1),
		"current twice":         strings.Replace(good, "since", "current "+two.Current.Text()+"\nsince", 1),
		"next twice":            strings.Replace(announced, "since", "next "+two.Current.Text()+"\nsince", 1),
		"next and previous":     strings.Replace(announced, "since", "previous "+two.Current.Text()+"\nsince", 1),
		"next equal to current": strings.Replace(good, "since", "next "+one.Current.Text()+"\nsince", 1),
		"another order":         strings.Replace(good, "since", "since 2026-11-29T01:12:31Z\nnext "+two.Current.Text()+"\nsince", 1),
		"a broken time":         strings.Replace(good, "2026", "20x6", 1),
		"a broken key":          strings.Replace(good, one.Current.Text(), one.Current.Text()[1:]+"A", 1),
		"carriage returns":      strings.ReplaceAll(good, "\n", "\r\n"),
		"an unknown line":       good + "more 1\n",
		"too long":              good + strings.Repeat("#", maxFile),
	} {
		path := filepath.Join(t.TempDir(), "keys")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, created, err := LoadOrCreate(path, start)
		if err == nil || created {
			t.Errorf("%s: created: %t, %v", name, created, err)
			continue
		}
		checkCure(t, name, err, path, one, two)
		if err := Replace(path, one, two); err == nil {
			t.Errorf("%s: it was replaced", name)
		}
		if data, _ := os.ReadFile(path); string(data) != text {
			t.Errorf("%s: it was changed", name)
		}
	}
}

func checkCure(t *testing.T, name string, err error, path string, secrets ...Keys) {
	t.Helper()
	text := err.Error()
	if !strings.Contains(text, path) || !strings.Contains(text, ": ") || len(text) > 500 {
		t.Errorf("%s: the error names no file or is too long: %v", name, err)
	}
	for _, keys := range secrets {
		if strings.Contains(text, keys.Current.Text()[1:20]) {
			t.Errorf("%s: the error tells the key: %v", name, err)
		}
	}
}

func TestPlacesThatAreNoFile(t *testing.T) {
	dir := t.TempDir()
	real := filepath.Join(dir, "real")
	keys, _, err := LoadOrCreate(real, start)
	if err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(path string) error{
		"symbolic link":  func(path string) error { return os.Symlink(real, path) },
		"symbolic link ": func(path string) error { return os.Symlink(filepath.Join(dir, "nowhere"), path) },
		"no file":        func(path string) error { return os.MkdirAll(filepath.Join(path, "x"), 0o700) },
	} {
		path := filepath.Join(t.TempDir(), "keys")
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if _, created, err := LoadOrCreate(path, start); err == nil || created || !strings.Contains(err.Error(), strings.TrimSpace(name)) {
			t.Errorf("%s: created: %t, %v", name, created, err)
		} else {
			checkCure(t, name, err, path, keys)
		}
		if err := Replace(path, keys, New(start)); err == nil {
			t.Errorf("%s: it was replaced", name)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "nowhere")); err == nil {
		t.Error("a key was made where a link leads")
	}
	if _, created, err := LoadOrCreate(filepath.Join(real, "below"), start); err == nil || created {
		t.Errorf("below a file: created: %t, %v", created, err)
	}
}

// Somebody put another key there: that one is not replaced.
func TestReplaceSeesChanges(t *testing.T) {
	path := keyFile(t)
	have, _, err := LoadOrCreate(path, start)
	if err != nil {
		t.Fatal(err)
	}
	want, err := have.Announce(later(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, want, have); err == nil || !strings.Contains(err.Error(), "not what it was") {
		t.Errorf("have %v", err)
	}
	for name, bad := range map[string]Keys{
		"nothing":    {},
		"no other":   {Current: have.Current, Phase: Switched},
		"an other":   {Current: have.Current, Other: want.Other},
		"one twice":  {Current: have.Current, Other: have.Current, Phase: Announced},
		"what phase": {Current: have.Current, Other: want.Other, Phase: "later"},
	} {
		if err := Replace(path, have, bad); err == nil {
			t.Errorf("%s: it was replaced", name)
		}
	}
	if again, err := Load(path); err != nil || again != have {
		t.Errorf("have %v, %v", again.Public(), err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, have, want); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("have %v", err)
	}
}

func FuzzParse(f *testing.F) {
	keys := New(start)
	f.Add(keys.text())
	f.Add([]byte(keys.Current.Text() + "\n"))
	next, _ := keys.Announce(start)
	f.Add(next.text())
	f.Add([]byte(fileType + fileVersion + "\ncurrent \n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := parse(data)
		if err != nil {
			if keys != (Keys{}) || len(err.Error()) > 300 {
				t.Fatalf("have %v with %v", keys.Public(), err)
			}
			return
		}
		if err := keys.check(); err != nil {
			t.Fatal(err)
		}
		again, err := parse(keys.text())
		if err != nil || again.Current != keys.Current || again.Other != keys.Other || again.Phase != keys.Phase || !again.Since.Equal(keys.Since) {
			t.Fatalf("have %v, %v, want %v", again.Public(), err, keys.Public())
		}
		if tagged := bytes.HasPrefix(data, []byte(fileType)); tagged && !bytes.Equal(keys.text(), data) || !tagged && keys != (Keys{Current: keys.Current}) {
			t.Fatal("it has another form")
		}
		if keys.Public()[0] == (tunnel.PublicKey{}) {
			t.Fatal("no public key")
		}
	})
}
