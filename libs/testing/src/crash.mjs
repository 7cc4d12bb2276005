// Loaded before a service (`NODE_OPTIONS=--import=…`): kills it when it comes to the step that the file `crash-at` in
// the state folder names. Of several processes that come there the first one dies, once.
import { subscribe } from 'node:diagnostics_channel';
import { readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';

const file = join(process.env.HOLDFAST_STATE_DIR ?? '', 'crash-at');

subscribe('holdfast:step', (step) => {
  try {
    if (readFileSync(file, 'utf8') !== step) return;
    renameSync(file, `${file}.reached`);
  } catch {
    return;
  }
  process.kill(process.pid, 'SIGKILL');
});
