import { join } from 'node:path';
import type { HarnessProfile } from '@holdfast/runner';

/** The smallest harness there can be: it shows what a profile is, and the platform's specs run on it. */
export const profile: HarnessProfile = {
  command: (start, { folder, home, door }) => ({
    command: process.execPath,
    args: [join(folder, 'main.mjs')],
    env: {
      SCRIPTED_DOOR: door,
      SCRIPTED_MODEL: start.model,
      SCRIPTED_SYSTEM: start.system ?? '',
      SCRIPTED_ASK: start.tools['bash'] === 'ask' ? '1' : '',
      SCRIPTED_FOLDER: join(home, '.scripted'),
    },
    files: [],
  }),
  toolOf: ({ name, input }) => ({ name, input }),
  resultOf: ({ text, failed }) => ({ text, isError: failed }),
};
