import { newId, type Session } from '@holdfast/contracts';
import { useMutation } from '@tanstack/react-query';
import { useRouter } from 'next/navigation';
import { toast } from 'sonner';
import { apiPersistent, messageOf } from './api.ts';

/** Where a fork begins: an event of the session, or a version of its log. */
export type ForkPlace = { readonly at_event_id: string } | { readonly at_version: number };

/** Forks a session and goes to the fork. */
export function useFork(sessionId: string): { readonly fork: (place: ForkPlace) => void; readonly busy: boolean } {
  const router = useRouter();
  const { mutate, isPending } = useMutation({
    mutationFn: (place: ForkPlace) => apiPersistent<Session>(`/v1/sessions/${sessionId}/fork`, place, newId('command')),
    onSuccess: (fork) => {
      toast.success('Forked. What you write here the other session does not see.');
      router.push(`/sessions/${fork.id}`);
    },
    onError: (error) => toast.error(messageOf(error)),
  });
  return { fork: mutate, busy: isPending };
}
