package state

import (
	"fmt"
	"os"
	"path/filepath"
)

// WriteFile replaces the file at path by one with this content and mode, so
// that a reader finds the old file or the new one and a crash leaves one of
// them whole. The directory is made with mode 0755 where it is missing; the
// umask counts for neither.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	return putFile(path, data, mode, os.Rename)
}

// CreateFile is WriteFile for a file that is not there yet. Of several that make
// it at once one succeeds; the error of the others wraps fs.ErrExist. The file
// system must have hard links.
func CreateFile(path string, data []byte, mode os.FileMode) error {
	return putFile(path, data, mode, func(temp, path string) error {
		if err := os.Link(temp, path); err != nil {
			return err
		}
		_ = os.Remove(temp) // the file is in place, whatever becomes of its other name
		return nil
	})
}

// putFile writes a temporary file beside path, flushes it, and puts it in place.
func putFile(path string, data []byte, mode os.FileMode, place func(temp, path string) error) (err error) {
	dir := filepath.Dir(path)
	if err := makeDir(dir); err != nil {
		return err
	}
	temp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("make temporary file: %w", err)
	}
	defer func() {
		if err != nil {
			_ = temp.Close() // closed already in some cases: nothing more is lost
			_ = os.Remove(temp.Name())
		}
	}()
	if _, err = temp.Write(data); err != nil {
		return err
	}
	if err = temp.Chmod(mode); err != nil {
		return err
	}
	if err = temp.Sync(); err != nil {
		return err
	}
	if err = temp.Close(); err != nil {
		return err
	}
	if err = place(temp.Name(), path); err != nil {
		return err
	}
	syncDir(dir)
	return nil
}

func makeDir(dir string) error {
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}
