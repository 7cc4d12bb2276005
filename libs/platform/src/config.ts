import { readFileSync } from 'node:fs';
import { AppError } from '@holdfast/contracts';
import type { z } from 'zod';

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Reads a service's settings once. `X_FILE` names a file that holds the value of `X` (a mounted secret). Values of
 * secrets are never part of the error, only names and rules.
 *
 * @throws AppError `config.invalid` whose message lists every fault, one per line.
 */
export function loadConfig<S extends z.ZodType>(schema: S, environment: Environment): z.infer<S> {
  const values: Record<string, string> = {};
  const faults: string[] = [];
  for (const [name, value] of Object.entries(environment)) {
    if (value === undefined) continue;
    if (!name.endsWith('_FILE')) {
      values[name] ??= value;
      continue;
    }
    try {
      values[name.slice(0, -'_FILE'.length)] = readFileSync(value, 'utf8').trimEnd();
    } catch {
      faults.push(`${name}: the file cannot be read`);
    }
  }
  const parsed = schema.safeParse(values);
  for (const issue of parsed.error?.issues ?? []) faults.push(`${issue.path.join('.')}: ${issue.message}`);
  if (faults.length > 0 || !parsed.success) {
    throw new AppError('invalid', 'config.invalid', `The configuration has faults:\n  ${faults.join('\n  ')}`);
  }
  return parsed.data;
}
