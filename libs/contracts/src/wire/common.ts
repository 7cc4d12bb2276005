import { z } from 'zod';
import { hasUnstorableText } from '../json.ts';
import { jsonValue } from '../json-schema.ts';
import { LIMITS } from './limits.ts';

/** Text that Postgres can store: no NUL, no lone surrogates, at most `maxChars` code units. */
export function text(maxChars: number, minChars = 0): z.ZodString {
  return z
    .string()
    .min(minChars)
    .max(maxChars)
    .refine((value) => !hasUnstorableText(value), 'must not contain NUL characters or lone surrogates');
}

function fault(value: unknown, depth: number): string | undefined {
  if (typeof value === 'string') {
    return hasUnstorableText(value) ? 'must not contain NUL characters or lone surrogates' : undefined;
  }
  if (typeof value === 'number' && !Number.isFinite(value)) return 'must not hold a number above 1.8e308';
  if (typeof value !== 'object' || value === null) return undefined;
  if (depth >= LIMITS.jsonDepth) return `must not be nested deeper than ${LIMITS.jsonDepth} levels`;
  if (Array.isArray(value)) {
    for (const item of value) {
      const found = fault(item, depth + 1);
      if (found !== undefined) return found;
    }
    return undefined;
  }
  for (const key of Object.keys(value)) {
    if (key === '__proto__' || key === 'constructor' || key === 'prototype') return `must not use the key "${key}"`;
    const found = fault(key, depth) ?? fault((value as Record<string, unknown>)[key], depth + 1);
    if (found !== undefined) return found;
  }
  return undefined;
}

/** Says what is wrong with a parsed body before any schema sees it: nesting, unstorable text or numbers, prototype keys. */
export function jsonFault(body: unknown): string | undefined {
  return fault(body, 0);
}

/** A field of the wire contract that is not built yet: absent or null. */
export const notYet = (name: string) => z.null({ error: `${name} is not supported yet; leave it out` }).optional();

/** A list of the wire contract that is not built yet: absent, null or empty. */
export const emptyYet = (name: string) =>
  z.array(jsonValue).max(0, `${name} is not supported yet; leave it empty`).nullish();

/**
 * The error of a union or an enum that names what the wire contract knows and this platform has not built yet. What
 * neither knows gets zod's own message.
 */
export function naming(...notBuilt: readonly string[]): (issue: { readonly input?: unknown }) => string | undefined {
  return ({ input }) => {
    const given: unknown = typeof input === 'object' && input !== null && 'type' in input ? input.type : input;
    return notBuilt.some((one) => one === given) ? `${String(given)} is not supported yet` : undefined;
  };
}

/** RFC 3339, in answers. */
export const timestamp = z.iso.datetime();

/** Metadata map of the wire contract: ≤ 16 pairs, key ≤ 64, value ≤ 512. */
export const metadata = z
  .record(text(LIMITS.metadataKeyChars, 1), text(LIMITS.metadataValueChars))
  .refine((map) => Object.keys(map).length <= LIMITS.metadataPairs, `must have at most ${LIMITS.metadataPairs} pairs`);

/** Metadata of an update: a patch in which null deletes a key. */
export const metadataPatch = z
  .record(text(LIMITS.metadataKeyChars, 1), text(LIMITS.metadataValueChars).nullable())
  .refine((map) => Object.keys(map).length <= 2 * LIMITS.metadataPairs, 'has too many keys');

/** Applies a metadata patch. The caller checks the resulting number of pairs. */
export function patchMetadata(
  current: Readonly<Record<string, string>>,
  patch: Readonly<Record<string, string | null>>,
): Record<string, string> {
  const next: Record<string, string> = { ...current };
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete next[key];
    else next[key] = value;
  }
  return next;
}

/** A page whose end is `next_page: null`. */
export interface Page<T> {
  readonly data: readonly T[];
  readonly next_page: string | null;
}

/** A page of a list, as {@link Page} is typed; `prev_page` where the list can be walked back. */
export const pageOf = <S extends z.ZodType>(item: S) =>
  z.strictObject({
    data: z.array(item),
    next_page: z.string().nullable(),
    prev_page: z.string().nullable().optional(),
  });

/** What a deleted object leaves of itself. */
export const deleted = <const T extends string>(type: T) => z.strictObject({ id: z.string(), type: z.literal(type) });
