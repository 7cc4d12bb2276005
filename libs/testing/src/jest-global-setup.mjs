import { chmodSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** One folder per test run; servers are started in it only when a spec asks for them. */
export default function globalSetup() {
  const runDir = mkdtempSync(join(tmpdir(), 'holdfast-test-'));
  // Servers run as other users than root.
  chmodSync(runDir, 0o711);
  process.env.HOLDFAST_TEST_RUN_DIR = runDir;
}
