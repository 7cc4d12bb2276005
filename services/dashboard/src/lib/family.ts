import type { Session } from '@holdfast/contracts';

/** One session of a family, and how far down from the top of the tree it stands. */
export interface FamilyMember {
  readonly session: Session;
  /** The one that it was forked from, where that is still there. */
  readonly parent: Session | undefined;
  readonly depth: number;
}

/**
 * A family as the lines of a tree, each session right under the one that it was forked from, siblings by where they left
 * it. What was forked from a session that is not there any more stands at the top.
 */
export function familyTree(sessions: readonly Session[]): readonly FamilyMember[] {
  const known = new Map(sessions.map((session) => [session.id, session]));
  const parentOf = ({ forked_from: from }: Session): Session | undefined =>
    from === null ? undefined : known.get(from.session_id);
  const left = ({ forked_from: from }: Session): number => from?.version ?? 0;
  const under = (parent: Session | undefined, depth: number): FamilyMember[] =>
    sessions
      .filter((session) => parentOf(session) === parent)
      .sort((a, b) => left(a) - left(b) || (a.created_at < b.created_at ? -1 : 1))
      .flatMap((session) => [{ session, parent, depth }, ...under(session, depth + 1)]);
  return under(undefined, 0);
}
