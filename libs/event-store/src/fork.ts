import { AppError, LIMITS } from '@holdfast/contracts';
import type { StreamAppend } from './append.ts';
import type { Transaction } from './pool.ts';

/** The newest version that a stream can have. */
export const MAX_VERSION = 2 ** 31 - 1;

/** Events of a stream that lie in `source`: those above `after`, up to `through`. */
export interface StreamRange {
  readonly source: string;
  readonly after: number;
  readonly through: number;
}

/** The ranges that a forked stream shares, oldest first; none = all its events are its own. */
export async function sharedRanges(reader: Transaction, streamId: string): Promise<readonly StreamRange[]> {
  const { rows } = await reader.query<StreamRange>({
    name: 'log-shared-ranges',
    text: `select source_id as source, after_version as after, through_version as through
           from stream_prefixes where stream_id = $1 order by through_version`,
    values: [streamId],
  });
  return rows;
}

/** All ranges of a stream with these shared ones: its own come after them. */
export function withOwn(streamId: string, shared: readonly StreamRange[]): readonly StreamRange[] {
  return [...shared, { source: streamId, after: shared.at(-1)?.through ?? 0, through: MAX_VERSION }];
}

/** The parts of ranges that lie above one version and up to another. */
export function clipped(ranges: readonly StreamRange[], after: number, through: number): readonly StreamRange[] {
  return ranges
    .map((range) => ({
      source: range.source,
      after: Math.max(range.after, after),
      through: Math.min(range.through, through),
    }))
    .filter((range) => range.after < range.through);
}

/**
 * Begins the forked streams of a batch, before its appends. What a fork shares is resolved to the streams that hold
 * the events, so a fork of a fork reads no deeper than it has ranges, and a parent's later deletion changes nothing.
 *
 * @throws AppError `log.fork-depth`; `log.no-parent` when the stream has no such version in that workspace
 */
export async function beginForks(transaction: Transaction, forks: readonly StreamAppend[]): Promise<void> {
  const inOrder = [...forks].sort((a, b) => (a.streamId < b.streamId ? -1 : 1));
  for (const { streamId, workspaceId, forkOf = '', expectedVersion: version = 0 } of inOrder) {
    const { rowCount } = await transaction.query(
      `insert into streams (stream_id, workspace_id, version)
       select $1, workspace_id, $4 from streams where stream_id = $3 and workspace_id = $2 and version >= $4 and $4 > 0`,
      [streamId, workspaceId, forkOf, version],
    );
    if (rowCount !== 1)
      throw new AppError('defect', 'log.no-parent', `Stream ${forkOf} has no version ${version} to fork at.`);
    const ranges = clipped(withOwn(forkOf, await sharedRanges(transaction, forkOf)), 0, version);
    if (ranges.length > LIMITS.forkDepth) {
      throw new AppError(
        'invalid',
        'log.fork-depth',
        `Forks of forks go ${LIMITS.forkDepth} deep at most; fork an ancestor instead.`,
      );
    }
    await transaction.query(
      `insert into stream_prefixes (stream_id, workspace_id, source_id, after_version, through_version)
       select $1, $2, * from unnest($3::text[], $4::integer[], $5::integer[])`,
      [
        streamId,
        workspaceId,
        ranges.map(({ source }) => source),
        ranges.map(({ after }) => after),
        ranges.map(({ through }) => through),
      ],
    );
  }
}
