'use client';
import { Failure } from '../components/ui.tsx';
import { ApiError } from '../lib/api.ts';

export default function NotFound() {
  return (
    <main className="grid min-h-dvh place-items-center">
      <Failure
        error={new ApiError(404, 'not_found_error', 'There is no such page.')}
        back={{ href: '/sessions', text: 'All sessions' }}
      />
    </main>
  );
}
