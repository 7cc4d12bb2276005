import { AppError } from '@holdfast/contracts';
import { z } from 'zod';

/** The list that a cursor was made for; another list refuses it. */
const listName = z.enum([
  'agents',
  'agent_versions',
  'environments',
  'files',
  'sessions',
  'events',
  'api_keys',
  'sandboxes',
  'sandbox_pools',
  'work',
  'environment_keys',
]);
export type ListName = z.infer<typeof listName>;
export type Order = 'asc' | 'desc';

const envelope = z.tuple([
  listName,
  z.enum(['asc', 'desc']),
  z.record(z.string().max(8), z.union([z.string().max(128), z.int().min(0)])),
]);
export type CursorKey = z.infer<typeof envelope>[2];

function badCursor(why: string): AppError {
  return new AppError('invalid', 'request.invalid-page', `query parameter "page" ${why}; start again without it`);
}

/** An opaque page token. It is no secret and grants nothing: every query is scoped to the caller's workspace anyway. */
export function encodeCursor(list: ListName, order: Order, key: CursorKey): string {
  return Buffer.from(JSON.stringify([list, order, key])).toString('base64url');
}

/** Reads a token back; one of another list or another order is refused, filters may change. */
export function decodeCursor(token: string, list: ListName, order: Order): CursorKey {
  let parsed: unknown;
  try {
    parsed = JSON.parse(Buffer.from(token, 'base64url').toString());
  } catch {
    throw badCursor('is not one of this API');
  }
  const cursor = envelope.safeParse(parsed);
  if (!cursor.success) throw badCursor('is not one of this API');
  const [ofList, ofOrder, key] = cursor.data;
  if (ofList !== list) throw badCursor('belongs to another list');
  if (ofOrder !== order) throw badCursor(`was made with order=${ofOrder} and cannot be used with order=${order}`);
  return key;
}

// Anybody can write a token, so its members are bounded as the columns are that they are compared with.
const rowKey = z.strictObject({
  t: z.int().min(0).max(4e15),
  i: z.string().regex(/^[\x21-\x7e]{1,100}$/),
  d: z.enum(['next', 'prev']),
});
/** Place of a row in a list that is ordered by (created_at, id): microseconds since 1970, id, and where to go from there. */
export type RowPlace = z.infer<typeof rowKey>;

export function decodeRowPlace(token: string, list: ListName, order: Order): RowPlace {
  const place = rowKey.safeParse(decodeCursor(token, list, order));
  if (!place.success) throw badCursor('is not one of this API');
  return place.data;
}

const eventKey = z.partialRecord(
  z.enum(['s', 'p']),
  z
    .int()
    .min(0)
    .max(2 ** 31 - 1),
);
/** Place in an event list: log version of the last stamped row, and of the last unstamped one, that were shown. */
export type EventPlace = z.infer<typeof eventKey>;

export function decodeEventPlace(token: string, order: Order): EventPlace {
  const place = eventKey.safeParse(decodeCursor(token, 'events', order));
  if (!place.success) throw badCursor('is not one of this API');
  return place.data;
}
